import pickle
import resource
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jgolf.errors import ArtifactError, JgolfError  # noqa: E402
from jgolf.torch_bridge import checkpoint  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_reads_a_state_dict(golden_state):
    read = checkpoint.read(GOLDEN / "tiny" / "final_model.pt")
    assert read.keys() == golden_state.keys()
    assert all(array.dtype == np.float32 for array in read.values())


def test_write_then_read(tmp_path):
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32(3).reshape(())}
    checkpoint.write(tmp_path / "x.pt", state)
    read = checkpoint.read(tmp_path / "x.pt")
    assert {name: array.tolist() for name, array in read.items()} == {"a": [[0, 1, 2], [3, 4, 5]], "b": 3.0}
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_disk_that_is_full_is_named(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(JgolfError, match="x.pt: cannot be written: File too large"):
            checkpoint.write(tmp_path / "x.pt", {"a": np.zeros(100_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_read_exactly(tmp_path):
    values = torch.tensor([1.0, -2.5, 3.140625], dtype=torch.bfloat16)
    torch.save({"a": values}, tmp_path / "x.pt")
    np.testing.assert_array_equal(checkpoint.read(tmp_path / "x.pt")["a"], np.float32([1.0, -2.5, 3.140625]))


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_nested_state_dict(tmp_path, key):
    torch.save({key: {"a": torch.ones(2)}, "step": 3}, tmp_path / "x.pt")
    assert list(checkpoint.read(tmp_path / "x.pt")) == ["a"]


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_and_not_run(tmp_path, legacy):
    content = {"a": torch.ones(2), "b": Harmful(tmp_path / "harm")}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ArtifactError, match=r"x\.pt: refused"):
        checkpoint.read(tmp_path / "x.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # PyTorch says so, and then refuses it
def test_plain_pickle_is_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    with pytest.raises(ArtifactError, match=r"x\.pt"):
        checkpoint.read(tmp_path / "x.pt")
    assert not (tmp_path / "harm").exists()


def test_damaged_files(tmp_path):
    whole = (GOLDEN / "tiny" / "final_model.pt").read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    for name, data in {"cut": whole[: len(whole) // 2], "changed": changed, "empty": b"", "text": b"hello"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ArtifactError, match=name):
            checkpoint.read(tmp_path / name)
    with pytest.raises(ArtifactError, match=r"nowhere.*cannot be read"):
        checkpoint.read(tmp_path / "nowhere")


def test_what_is_no_float_tensor_is_named(tmp_path):
    spread = torch.zeros(1).expand(1 << 40)
    torch.save({"a": torch.ones(2), "b": "text", "c": torch.arange(3), "d": spread}, tmp_path / "x.pt")
    with pytest.raises(ArtifactError) as error:
        checkpoint.read(tmp_path / "x.pt")
    text = str(error.value)
    assert "b: found str" in text
    assert "c: found torch.int64" in text
    assert "d: found" in text
    assert "a:" not in text
    torch.save([torch.ones(2)], tmp_path / "y.pt")
    with pytest.raises(ArtifactError, match="expected a state dict"):
        checkpoint.read(tmp_path / "y.pt")


class Room:
    """Asks for a type to be called with a number of bytes."""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        return (self.kind, (1 << 40,))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", [bytearray, torch.FloatTensor, torch.UntypedStorage])
def test_a_pickle_that_asks_for_room_is_refused_before_it_gets_any(tmp_path, kind, legacy):
    torch.save({"a": torch.ones(2), "b": Room(kind)}, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ArtifactError, match=rf"x\.pt: refused: .*asks for .*{kind.__name__}"):
        checkpoint.read(tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_scripts_save_is_read(tmp_path, legacy):
    """Tied weights, views of one bank, parameters, and tensors beside the state dict."""
    table, bank = torch.randn(3, 2), torch.randn(4, 5)
    state = {"tok_emb.weight": torch.nn.Parameter(table), "lm_head.weight": table, "a": bank[:2], "b": bank[2:].T}
    content = {
        "model": state,
        "step": 7,
        "seen": {1, 2},
        "shape": torch.Size([3]),
        "type": torch.float32,
        "half": bank.half(),
    }
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    read = checkpoint.read(tmp_path / "x.pt")
    assert read.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(read[name], value.detach().numpy())


def test_a_list_of_problems_is_bounded(tmp_path):
    torch.save({f"{layer}" * 500: torch.arange(3) for layer in range(30)} | {(1, 2): torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(ArtifactError) as error:
        checkpoint.read(tmp_path / "x.pt")
    assert "… and 20 more" in str(error.value) and len(str(error.value)) < 3000
