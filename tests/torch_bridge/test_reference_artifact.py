import io
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

torch = pytest.importorskip("torch")

from jgolf.errors import ArtifactError  # noqa: E402
from jgolf.load import load_model  # noqa: E402
from jgolf.torch_bridge import names, reference_artifact  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"

FOLDERS = ("tiny", "small")


def content_of(path):
    raw = zstandard.ZstdDecompressor().decompress(path.read_bytes(), max_output_size=1 << 26)
    return torch.load(io.BytesIO(raw), weights_only=True)


def write_content(path, content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(zstandard.compress(buffer.getvalue()))
    return path


@pytest.fixture
def small():
    return content_of(GOLDEN / "small" / "final_model.int6.ptz")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_form_is_read(folder):
    stored, notices = reference_artifact.read(GOLDEN / folder / "final_model.int6.ptz")
    formats = json.loads((GOLDEN / folder / "artifact_formats.json").read_text())
    found = {names.rules.torch_name(path): tensor.form for path, tensor in stored.items()}
    assert notices == []
    assert found.keys() == formats.keys()
    for name, form in formats.items():
        expected = {"int6": "int5" if ".mlp." in name else "int6", "int8": "int8"}.get(form, "fp16")
        assert found[name] == expected, name


@pytest.mark.parametrize("folder", FOLDERS)
def test_written_back_it_is_the_same(tmp_path, folder):
    source = GOLDEN / folder / "final_model.int6.ptz"
    stored, _ = reference_artifact.read(source)
    reference_artifact.write(tmp_path / "x.ptz", stored)
    before, after = content_of(source), content_of(tmp_path / "x.ptz")
    assert before["m"] == after["m"]
    assert before["w"].keys() == after["w"].keys()
    for name, tensor in before["w"].items():
        assert tensor.dtype == after["w"][name].dtype, name
        assert torch.equal(tensor, after["w"][name]), name


def test_dequantized_weights():
    """The PyTorch reference's own dequantization of its artifact."""
    expected = np.load(GOLDEN / "tiny" / "artifact.npz")
    model = load_model(GOLDEN / "tiny" / "final_model.int6.ptz", str(GOLDEN / "tiny" / "config.json"))
    for name, array in names.from_params(model.params).items():
        key = next(key for key in expected.files if key.endswith("/" + name))
        np.testing.assert_array_equal(array, expected[key], err_msg=name)


def test_control_floats_and_levels_beyond_int5(tmp_path, small):
    small["w"]["smear.gate"] = small["w"]["smear.gate"].float() + 1e-4
    small["m"]["smear.gate"] = "passthrough_ctrl"
    small["w"]["blocks.0.mlp.fc.weight.q"][3, 4] = 31
    stored, _ = reference_artifact.read(write_content(tmp_path / "x.ptz", small))
    assert stored["smear/gate"].form == "fp32"
    assert stored["blocks/0/mlp/up_proj/kernel"].form == "int6"
    reference_artifact.write(tmp_path / "y.ptz", stored)
    again = content_of(tmp_path / "y.ptz")
    assert again["m"] == small["m"]
    assert torch.equal(again["w"]["smear.gate"], small["w"]["smear.gate"])


def test_everything_that_does_not_fit_is_named(tmp_path, small):
    tensors, marks = small["w"], small["m"]
    del tensors["smear.gate"]
    del tensors["blocks.0.mlp.fc.weight.scale"]
    tensors["blocks.1.attn.c_q.weight.scale"] = tensors["blocks.1.attn.c_q.weight.scale"][:5]
    tensors["blocks.1.attn.proj.weight.q"] = tensors["blocks.1.attn.proj.weight.q"].float()
    tensors["blocks.1.mlp.fc.weight.q"][0, 0] = 90
    tensors["stray"] = torch.ones(3)
    marks["bigram.embed.weight"] = {"type": "int3"}
    marks["blocks.0.what"] = "passthrough"
    with pytest.raises(ArtifactError) as error:
        reference_artifact.read(write_content(tmp_path / "x.ptz", small))
    text = str(error.value)
    for part in (
        "x.ptz",
        "smear.gate: missing",
        "blocks.0.mlp.fc.weight.scale: missing",
        "blocks.1.attn.c_q.weight.scale: found float16 [5], expected float16 [320]",
        "blocks.1.attn.proj.weight.q: found float32 [320, 320], expected int8",
        "blocks.1.mlp.fc.weight.q: levels from -2 to 90",
        "stray: has no entry in m",
        "bigram.embed.weight: storage form {'type': 'int3'}",
        "blocks.0.what: no parameter has that name",
    ):
        assert part in text, part


def test_damaged_files(tmp_path):
    whole = (GOLDEN / "tiny" / "final_model.int6.ptz").read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    no_artifact = io.BytesIO()
    torch.save({"w": {}}, no_artifact)
    cases = {
        "cut": whole[: len(whole) // 2],
        "changed": bytes(changed),
        "zeros": b"\0" * 100,
        "not_torch": zstandard.compress(b"hello" * 100),
        "other": zstandard.compress(no_artifact.getvalue()),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ArtifactError, match=name):
            reference_artifact.read(tmp_path / name)


def test_decompression_is_bounded(monkeypatch):
    monkeypatch.setattr(reference_artifact, "MAX_RAW_BYTES", 1000)
    assert reference_artifact.decompress(zstandard.compress(b"\0" * 1000), "x") == b"\0" * 1000
    with pytest.raises(ArtifactError, match="more than 1,000 bytes"):
        reference_artifact.decompress(zstandard.compress(b"\0" * 1001), "x")


def test_tensors_for_tests_without_pytorch(small):
    """artifact_tensors.npz holds the artifact's tensors as they are, for the tests that cannot read it."""
    arrays = np.load(GOLDEN / "small" / "artifact_tensors.npz")
    assert set(arrays.files) == small["w"].keys()
    for name, tensor in small["w"].items():
        assert arrays[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(arrays[name], tensor.numpy(), err_msg=name)
