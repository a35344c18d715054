"""Conversions keep every value that the destination can hold."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jgolf.cli import main  # noqa: E402
from jgolf.load import load_model  # noqa: E402
from jgolf.quantize.export import quantize  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"


def run(*arguments):
    return main(["convert", *map(str, arguments)])


def assert_same_storage(stored, expected):
    assert stored.keys() == expected.keys()
    for path, tensor in stored.items():
        other = expected[path]
        assert (tensor.form, tensor.shape, tensor.values.dtype) == (other.form, other.shape, other.values.dtype), path
        np.testing.assert_array_equal(tensor.values, other.values, err_msg=path)
        np.testing.assert_array_equal(tensor.scales, other.scales, err_msg=path)


@pytest.mark.parametrize("folder", ["tiny", "small"])
def test_reference_artifact_to_jgolf_and_back(tmp_path, folder):
    source, option = GOLDEN / folder / "final_model.int6.ptz", GOLDEN / folder / "config.json"
    assert run(source, tmp_path / "a.jgolf", "--config", option) == 0
    assert run(tmp_path / "a.jgolf", tmp_path / "b.ptz") == 0
    original = load_model(source, str(option))
    through = load_model(tmp_path / "a.jgolf")
    assert through.config.model == original.config.model
    assert_same_storage(through.stored, original.stored)
    assert_same_storage(load_model(tmp_path / "b.ptz", str(option)).stored, original.stored)


def test_state_dict_to_each_and_back(tmp_path):
    source, option = GOLDEN / "tiny" / "final_model.pt", str(GOLDEN / "tiny" / "config.json")
    model = load_model(source, option)
    expected = quantize(model.params, model.config.quantize)
    for suffix in (".jgolf", ".ptz"):
        assert run(source, tmp_path / f"a{suffix}", "--config", option) == 0
        loaded = load_model(tmp_path / f"a{suffix}", option if suffix == ".ptz" else None)
        assert_same_storage(loaded.stored, expected)
        assert (
            run(
                tmp_path / f"a{suffix}", tmp_path / f"b{suffix}.pt", *(["--config", option] if suffix == ".ptz" else [])
            )
            == 0
        )
        floats = load_model(tmp_path / f"b{suffix}.pt", option)
        for path, array in floats.params.items():
            np.testing.assert_array_equal(array, loaded.params[path], err_msg=path)
    # Control vectors are stored in full precision, in the reference's container too.
    assert expected["smear/gate"].form == "fp32"
    assert run(source, tmp_path / "c.pt", "--config", option) == 0
    before, after = (torch.load(path, weights_only=True) for path in (source, tmp_path / "c.pt"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert before.keys() == after.keys()


def test_destinations_that_cannot_be_written(tmp_path, capsys):
    source = GOLDEN / "tiny" / "final_model.pt"
    assert run(source, tmp_path / "x.npz") == 2
    assert "x.npz: the ending says what to write; expected one of .pt" in capsys.readouterr().err
    (tmp_path / "x.pt").write_bytes(b"mine")
    assert run(source, tmp_path / "x.pt") == 2
    assert "x.pt: exists already" in capsys.readouterr().err
    assert (tmp_path / "x.pt").read_bytes() == b"mine"
    assert run(source, tmp_path / "x.pt", "--overwrite") == 0
    assert load_model(tmp_path / "x.pt").params.keys() == load_model(source).params.keys()
