"""Training scripts as users have them are imported without being run."""

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")


from jgolf.errors import ArtifactError, ConfigError  # noqa: E402
from jgolf.torch_bridge import names, script, stand_ins  # noqa: E402
from jgolf.torch_bridge.script import ScriptError  # noqa: E402
from tests.conftest import RECIPE  # noqa: E402

SCRIPT = Path(__file__).parent / "reference_script.py"
MODEL = dataclasses.replace(
    RECIPE.model,
    vocab_size=30,
    num_layers=3,
    model_dim=16,
    num_heads=2,
    num_kv_heads=1,
    bigram_buckets=9,
    bigram_dim=4,
    xsa_layers=(1, 2),
    rope_dims=4,
    value_embedding_layers=(0,),
    value_embedding_dim=4,
)


def imported(path, float32_only=True):
    return script.imported(path, float32_only=float32_only, on_cpu=True)


def write(tmp_path, text):
    path = tmp_path / "train_gpt.py"
    path.write_text(text)
    return path


MINIMAL = """
import torch
class GPT(torch.nn.Module):
    def __init__(self{arguments}):
        super().__init__()
    def forward_logits(self, input_ids):
        return input_ids
"""


def test_main_is_not_run_and_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("ITERATIONS", "7")
    path = write(tmp_path, SCRIPT.read_text() + "\nimport os\nos.environ['ITERATIONS'] = '8'\n")
    before = dict(os.environ), list(sys.path), list(sys.argv)
    with imported(path) as module:
        assert module.Hyperparameters.iterations == 7
    assert (dict(os.environ), list(sys.path), list(sys.argv)) == before
    assert "flash_attn_interface" not in sys.modules
    assert [entry.name for entry in tmp_path.iterdir()] == ["train_gpt.py"]


def test_calls_for_a_gpu_at_import(tmp_path):
    text = """
import os
import torch
from dataclasses import dataclass
from flash_attn import flash_attn_func
from flash_attn.flash_attn_interface import flash_attn_func as other
rank = int(os.environ["RANK"])
torch.cuda.set_device(rank)
assert torch.cuda.get_device_properties(0).major >= 8
torch.empty(1, device="cuda", requires_grad=True).backward()
device = torch.device("cuda", rank)
@dataclass
class Settings:
    width: int = 3
@torch.compile
def square(x):
    return x * x
@torch.compile(dynamic=False, fullgraph=True)
def cube(x):
    return x * x * x
table = torch.zeros(3).cuda().bfloat16()
"""
    with imported(write(tmp_path, text + MINIMAL.format(arguments=""))) as module:
        assert module.table.device.type == "cpu"
        assert module.table.dtype == torch.float32
        assert module.square(3) == 9
        assert module.cube(2) == 8
        assert torch.zeros(2, device=module.device, dtype=torch.bfloat16).dtype == torch.float32
    with imported(write(tmp_path, text + MINIMAL.format(arguments="")), float32_only=False) as module:
        assert module.table.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("import nonexistent_package_of_mine", "No module named 'nonexistent_package_of_mine' (line 1)"),
        ("\n\nraise SystemExit(3)", "SystemExit: 3 (line 3)"),
        ("x = (", "SyntaxError"),
        ("class GPT: pass", "expected a class GPT, a torch.nn.Module, found none"),
        ("x = 1", "expected a class GPT, a torch.nn.Module, found none"),
    ],
)
def test_scripts_that_cannot_be_imported(tmp_path, text, part):
    path = write(tmp_path, text)
    with pytest.raises(ScriptError) as error, imported(path):
        pass
    assert str(path) in str(error.value)
    assert part in str(error.value)


def test_no_script(tmp_path):
    with pytest.raises(ScriptError, match=r"nowhere\.py: no such file"), imported(tmp_path / "nowhere.py"):
        pass


def test_settings_are_given_by_name(tmp_path):
    with imported(SCRIPT) as module:
        arguments, notices = script.constructor_arguments(module, SCRIPT, MODEL)
        model = module.GPT(**arguments)
    assert notices == []
    assert [block.attn.use_xsa for block in model.blocks] == [False, True, True]
    assert model.ve_layer_indices == [0]
    assert model.blocks[0].attn.rotary.dim == 4
    assert model.blocks[2].norm_factor == pytest.approx(3**-0.5)
    assert model.bigram.embed.weight.shape == (9, 4)


def test_constructors_of_other_kinds(tmp_path):
    path = write(tmp_path, MINIMAL.format(arguments=", vocab_size, model_dim, extra=5"))
    with imported(path) as module:
        arguments, notices = script.constructor_arguments(module, path, MODEL)
    assert arguments == {"vocab_size": 30, "model_dim": 16}
    assert f"{path}: GPT takes no xsa_last_n; the model has 2" in notices
    path = write(tmp_path, MINIMAL.format(arguments=", **settings"))
    with imported(path) as module:
        arguments, notices = script.constructor_arguments(module, path, MODEL)
    assert notices == []
    assert arguments["xsa_last_n"] == 2
    assert arguments["ve_layers"] == "0"
    path = write(tmp_path, "class Hyperparameters:\n    width = 3\n" + MINIMAL.format(arguments=", width, args"))
    with imported(path) as module:
        arguments, notices = script.constructor_arguments(module, path, MODEL)
    assert notices == []
    assert arguments["width"] == 3
    assert arguments["args"].num_layers == 3
    path = write(tmp_path, MINIMAL.format(arguments=", vocab_size, flavour"))
    with imported(path) as module, pytest.raises(ScriptError, match="GPT needs flavour, which"):
        script.constructor_arguments(module, path, MODEL)


def test_what_main_gives_its_model_beside_the_known_settings(tmp_path):
    """A switch that jgolf has never heard of is as the script itself has it, and heads that are not scored are said."""
    text = (
        "class Hyperparameters:\n    gated = True\n    heads = 2\n"
        + MINIMAL.format(arguments=", vocab_size, gated=False, slope=0.0, mtp_num_heads=0, other=1")
        + "def build(args):\n    slope = 0.25 * args.heads\n"
        + "    return GPT(args.vocab, gated=args.gated, slope=slope, mtp_num_heads=args.heads).cuda()\n"
    )
    path = write(tmp_path, text)
    with imported(path) as module:
        arguments, notices = script.constructor_arguments(module, path, MODEL)
    assert arguments == {"vocab_size": 30, "mtp_num_heads": 0, "gated": True, "slope": 0.5}
    assert f"{path}: its own mtp_num_heads is 2; both sides are without" in notices


def test_xsa_elsewhere_than_at_the_end():
    model = dataclasses.replace(RECIPE.model, num_layers=4, xsa_layers=(0, 3), value_embedding_layers=())
    with pytest.raises(ConfigError, match=r"xsa_layers is \(0, 3\)"):
        script.reference_settings(model)


def test_weights_that_the_script_does_not_have(tmp_path):
    with imported(SCRIPT) as module:
        arguments, _ = script.constructor_arguments(module, SCRIPT, MODEL)
        state = {name: value.numpy() for name, value in module.GPT(**arguments).state_dict().items()}
        params, _ = names.to_params(state)
        del params["smear/gate"]
        with pytest.raises(ArtifactError, match=r"smear.gate: missing, expected \[16\]"):
            script.build_model(module, SCRIPT, MODEL, params, "cpu")


def test_flash_attention_stand_in():
    """Against the definition, query head by query head."""
    generator = np.random.default_rng(0)
    q, k, v = (generator.normal(size=(2, 5, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    found = stand_ins.flash_attention(*map(torch.from_numpy, (q, k, v)), causal=True).numpy()
    for head in range(4):
        scores = np.einsum("btd,bsd->bts", q[:, :, head], k[:, :, head // 2]) / np.sqrt(8)
        scores = np.where(np.tril(np.ones((5, 5), bool)), scores, -np.inf)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        np.testing.assert_allclose(found[:, :, head], weights @ v[:, :, head // 2], atol=1e-6)
    with pytest.raises(TypeError, match="window_size"):
        stand_ins.flash_attention(*map(torch.from_numpy, (q, k, v)), causal=True, window_size=(4, 1))
    all_keys = stand_ins.flash_attention(*map(torch.from_numpy, (q, k, v)), causal=True, window_size=(4, 0))
    np.testing.assert_allclose(all_keys, found, atol=1e-6)
    two_keys = stand_ins.flash_attention(*map(torch.from_numpy, (q, k, v)), causal=True, window_size=(1, 0)).numpy()
    scores = np.einsum("bhd,bshd->bhs", q[:, 4], np.repeat(k[:, 3:], 2, axis=2)) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bhs,bshd->bhd", weights, np.repeat(v[:, 3:], 2, axis=2))
    np.testing.assert_allclose(two_keys[:, 4], expected, atol=1e-6)


def test_flash_attention_of_packed_sequences():
    """Each is as if it were alone; the boundaries are padded with the end, as those of pull request #1855 are."""
    generator = np.random.default_rng(0)
    q, k, v = (torch.from_numpy(generator.normal(size=(9, heads, 8)).astype(np.float32)) for heads in (4, 2, 2))
    bounds = torch.tensor([0, 4, 5, 9, 9, 9], dtype=torch.int32)
    module = stand_ins._flash_attention_modules(always=True)["flash_attn_interface"]
    found = module.flash_attn_varlen_func(q, k, v, bounds, bounds, 4, 4, causal=True)
    pieces = (slice(0, 4), slice(4, 5), slice(5, 9))
    alone = [module.flash_attn_func(q[None, p], k[None, p], v[None, p], causal=True)[0] for p in pieces]
    np.testing.assert_array_equal(found, torch.cat(alone))
    for queries, keys in ((bounds, bounds[:-1]), (bounds - 1, bounds - 1), (bounds.flip(0), bounds.flip(0))):
        with pytest.raises(TypeError, match="do not make up all positions"):
            module.flash_attn_varlen_func(q, k, v, queries, keys, 4, 4, causal=True)
    with pytest.raises(TypeError, match="softcap"):
        module.flash_attn_varlen_func(q, k, v, bounds, bounds, 4, 4, causal=True, softcap=30.0)
