import dataclasses
import io
import json
import lzma
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard

torch = pytest.importorskip("torch")

from jgolf import config as configs  # noqa: E402
from jgolf.cli import main  # noqa: E402
from jgolf.errors import ArtifactError, MissingExtraError  # noqa: E402
from jgolf.load import load_model  # noqa: E402
from jgolf.model.functional import parameter_shapes  # noqa: E402
from jgolf.quantize.export import quantize  # noqa: E402
from jgolf.torch_bridge import compressed, names, reference_artifact  # noqa: E402

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
    found = {names.torch_name(path): tensor.form for path, tensor in stored.items()}
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
        "bigram.embed.weight: storage form 'int3', expected one of",
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
        # What begins like no other method's data may be brotli's: without that package, it is asked for.
        with pytest.raises((ArtifactError, MissingExtraError), match=name):
            reference_artifact.read(tmp_path / name)


COMPRESS = {"zstd": zstandard.compress, "zlib": zlib.compress, "lzma": lzma.compress}


@pytest.mark.parametrize("method", COMPRESS)
def test_decompression_is_bounded(monkeypatch, method):
    monkeypatch.setattr(compressed, "SMALL_BYTES", 1 << 20)
    for size in (0, 1, 1 << 20):
        assert compressed.decompress(COMPRESS[method](b"\0" * size), "x") == b"\0" * size
    with pytest.raises(ArtifactError, match="x: its [0-9,]+ bytes hold more than 1,048,576 decompressed"):
        compressed.decompress(COMPRESS[method](b"\0" * (1 << 26)), "x")
    noise = np.random.default_rng(0).bytes(1 << 20)  # a larger file may hold more
    assert compressed.decompress(COMPRESS[method](noise * 4), "x") == noise * 4
    with pytest.raises(ArtifactError, match="x: (cut off|not .* data, or damaged)"):
        compressed.decompress(COMPRESS[method](noise)[:-100], "x")


def peak_mb(paths):
    """Of a process that reads models, in MB above one that has only imported PyTorch, and what it says."""
    code = """if True:
        import resource, sys, torch
        import jgolf.load
        from jgolf.errors import JgolfError
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sys.argv[1:]:
            try:
                jgolf.load.load_model(path)
            except JgolfError as error:
                print(error, file=sys.stderr)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
        """
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=True)
    return int(done.stdout), done.stderr


def test_a_small_file_takes_little_memory(tmp_path):
    """Zeros that compress to nothing, and many names for one storage, in both containers."""
    shared = torch.zeros(1 << 24)
    torch.save({f"blocks.{layer}.mlp.fc.weight": shared for layer in range(200)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as archive, zipfile.ZipFile(tmp_path / "a.pt", "w", 8) as packed:
        for entry in archive.namelist():
            packed.writestr(entry, archive.read(entry))
    (tmp_path / "b.ptz").write_bytes(zstandard.compress(b"\0" * (1 << 28)))
    levels, scales = torch.zeros(1 << 12, 1 << 12, dtype=torch.int8), torch.ones(1 << 12, dtype=torch.float16)
    tensors = {f"blocks.{layer}.mlp.fc.weight.q": levels for layer in range(200)}
    tensors |= {f"blocks.{layer}.mlp.fc.weight.scale": scales for layer in range(200)}
    marks = {f"blocks.{layer}.mlp.fc.weight": {"type": "int6"} for layer in range(200)}
    write_content(tmp_path / "c.ptz", {"w": tensors, "m": marks})
    files = [tmp_path / name for name in ("a.pt", "b.ptz", "c.ptz", "plain.pt")]
    assert all(path.stat().st_size < 600_000 for path in files[:3])
    used_mb, said = peak_mb(files)
    assert used_mb < 400
    for path, line in zip(files, said.splitlines(), strict=True):
        assert line.startswith(f"{path}: its ") and line.endswith("refused")
    assert "200 tensors take 13,421,772,800 bytes but share 67,108,864" in said


def test_marks_of_every_width(tmp_path, small):
    """Other scripts say int5 where they mean it, and int4 or int7 too; a level is level × scale in all of them."""
    name = "blocks.0.mlp.fc.weight"
    for bits in range(4, 9):
        lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        small["w"][f"{name}.q"][0, :2] = torch.tensor([lowest, highest], dtype=torch.int8)
        small["m"][name] = {"type": f"int{bits}"}
        stored, _ = reference_artifact.read(write_content(tmp_path / "x.ptz", small))
        tensor = stored["blocks/0/mlp/up_proj/kernel"]
        assert tensor.form == f"int{bits}" and tensor.values[0, :2].tolist() == [lowest, highest]
        if bits < 8:
            small["m"][name] = {"type": f"int{bits - 1}"}
            with pytest.raises(
                ArtifactError, match=f"levels from {lowest} to {highest}, expected int{bits - 1}|form 'int3'"
            ):
                reference_artifact.read(write_content(tmp_path / "x.ptz", small))


def baseline_artifact(path, params, zipped=zlib.compress):
    """As the challenge's baseline writes one: Int8 rows above 65,536 values, the rest float16, control float32."""
    state = {name: torch.from_numpy(np.array(value)) for name, value in names.from_params(params).items()}
    quantized, scales, floats = {}, {}, {}
    for name, value in state.items():
        if value.ndim == 2 and value.numel() > 65_536:
            clip = torch.quantile(value.abs(), 0.9999984, dim=1)
            step = (clip / 127.0).clamp_min(1.0 / 127.0)
            clipped = torch.maximum(torch.minimum(value, clip[:, None]), -clip[:, None])
            quantized[name] = torch.clamp(torch.round(clipped / step[:, None]), -127, 127).to(torch.int8)
            scales[name] = step.half()
        else:
            floats[name] = value if any(part in name for part in ("scale", "mix", "gain", "skip")) else value.half()
    content = {
        "__quant_format__": "int8_clean_per_row_v1",
        "quantized": quantized,
        "scales": scales,
        "dtypes": dict.fromkeys(quantized, "float32"),
        "passthrough": floats,
        "qmeta": {name: {"scheme": "per_row", "axis": 0} for name in quantized},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(zipped(buffer.getvalue()))
    return content


@pytest.mark.parametrize("method", COMPRESS)
def test_the_baseline_s_artifact(tmp_path, method):
    """It is read, and its integers are those that the recipe exports."""
    config = configs.load("baseline")
    model = dataclasses.replace(config.model, num_layers=2, model_dim=256, num_heads=4, num_kv_heads=2)
    generator = np.random.default_rng(0)
    params = {path: np.float32(generator.normal(size=shape)) for path, shape in parameter_shapes(model).items()}
    content = baseline_artifact(tmp_path / "final_model.int8.ptz", params, COMPRESS[method])
    loaded = load_model(tmp_path / "final_model.int8.ptz")
    assert loaded.config.model == model
    expected = quantize(params, config.quantize)
    for path, tensor in loaded.stored.items():
        assert tensor.form == expected[path].form, path
        np.testing.assert_array_equal(tensor.values, expected[path].values, err_msg=path)
        np.testing.assert_array_equal(tensor.scales, expected[path].scales, err_msg=path)
    name = "blocks.1.mlp.fc.weight"
    theirs = content["quantized"][name].float() * content["scales"][name].float()[:, None]
    np.testing.assert_array_equal(names.from_params(loaded.params)[name], theirs.numpy())


def test_scales_that_are_no_numbers_are_refused(tmp_path, small, capsys):
    for value in (float("nan"), float("inf")):
        small["w"]["blocks.0.attn.c_q.weight.scale"][7] = value
        source = write_content(tmp_path / "x.ptz", small)
        option = str(GOLDEN / "small" / "config.json")
        assert main(["convert", str(source), str(tmp_path / "y.jgolf"), "--config", option]) == 2
        assert not (tmp_path / "y.jgolf").exists()
        text = capsys.readouterr().err
        assert "x.ptz: weights that are infinite or NaN" in text and "blocks.0.attn.c_q.weight: 320 of" in text


def test_tensors_for_tests_without_pytorch(small):
    """artifact_tensors.npz holds the artifact's tensors as they are, for the tests that cannot read it."""
    arrays = np.load(GOLDEN / "small" / "artifact_tensors.npz")
    assert set(arrays.files) == small["w"].keys()
    for name, tensor in small["w"].items():
        assert arrays[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(arrays[name], tensor.numpy(), err_msg=name)
