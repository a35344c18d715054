"""The command itself, on a PyTorch script that stands for a user's."""

import dataclasses
import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jgolf.cli import main  # noqa: E402
from jgolf.data.sentence_piece import ByteTables  # noqa: E402
from jgolf.data.shards import TokenStream  # noqa: E402
from jgolf.data.text import Text  # noqa: E402
from jgolf.evaluate.score import gathered, summarize  # noqa: E402
from jgolf.evaluate.windows import sliding_windows, standard_windows  # noqa: E402
from jgolf.load import load_model  # noqa: E402
from jgolf.model.functional import parameter_shapes  # noqa: E402
from jgolf.torch_bridge import own_optimizers, script, torch_model  # noqa: E402
from tests.conftest import RECIPE  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"
SCRIPT = Path(__file__).parent / "reference_script.py"
BASE = {
    "vocab_size": 400,
    "num_layers": 3,
    "model_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_mult": 3.0,
    "tie_embeddings": True,
    "tied_embed_init_std": 0.5,
    "logit_softcap": 30.0,
    "rope_base": 10000.0,
    "qk_gain_init": 1.5,
    "bigram_vocab_size": 50,
    "bigram_dim": 8,
    "xsa_last_n": 1,
    "rope_dims": 4,
    "ln_scale": True,
    "ve_enabled": True,
    "ve_dim": 8,
    "ve_layers": "1,2",
}
ODD_SHAPES = {
    "equal widths, as many kv heads, full rotary, XSA everywhere": {
        "num_kv_heads": 4,
        "bigram_dim": 32,
        "ve_dim": 32,
        "ve_layers": "0,2",
        "rope_dims": 0,
        "xsa_last_n": 3,
    },
    "five layers, one kv head": {
        "num_layers": 5,
        "num_kv_heads": 1,
        "ve_layers": "3",
        "mlp_mult": 2.5,
        "logit_softcap": 15.0,
    },
    "no tables": {"bigram_vocab_size": 0, "ve_enabled": False, "xsa_last_n": 0, "ln_scale": False, "rope_base": 500.0},
}
ONE_LAYER = BASE | {"num_layers": 1, "ve_layers": "0", "num_heads": 2, "num_kv_heads": 1, "tie_embeddings": False}


def run(reference, checkpoint, settings, text_dir, *more):
    arguments = ["crosscheck", "--reference", reference, "--checkpoint", checkpoint, "--config", json.dumps(settings)]
    arguments += ["--tokens", text_dir / "fineweb_val_000000.bin", "--tokenizer", text_dir / "t.model"]
    arguments += ["--seq-len", 40, "--max-tokens", 300, "--stride", 16, *more]
    return main([str(argument) for argument in arguments])


def changed_script(tmp_path, old, new):
    text = SCRIPT.read_text()
    assert text.count(old) == 1
    (tmp_path / "train_gpt.py").write_text(text.replace(old, new))
    return tmp_path / "train_gpt.py"


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_odd_shapes_agree(make_checkpoint, text_dir, capsys, shape):
    settings = BASE | ODD_SHAPES[shape]
    assert run(SCRIPT, make_checkpoint(**settings), settings, text_dir) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    assert printed.count("pass") >= 6


@pytest.mark.parametrize("settings", [ONE_LAYER, pytest.param(BASE, marks=pytest.mark.slow)])
def test_training_agrees(make_checkpoint, text_dir, capsys, settings):
    assert run(SCRIPT, make_checkpoint(**settings), settings, text_dir, "--train-steps", 4) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    assert printed.count("pass") >= 6 + 2 * 4


TOLD_BY_NO_TENSOR = {
    "xsa_last_n": ("1", "xsa_layers 2 (the recipe pr592 has 0,1,2)"),
    "rope_dims": ("4", "rope_dims 4 (the recipe pr592 has 8)"),
    "rope_base": ("700", "rope_base 700 (the recipe pr592 has 10000)"),
    "ln_scale": ("0", "ln_scale off (the recipe pr592 has on)"),
    "logit_softcap": ("12.5", "logit_softcap 12.5 (the recipe pr592 has 30)"),
    "ve_layers": ("0,2", "value_embedding_layers 0,2 (the recipe pr592 has 1,2)"),
}
"""Setting → another value than jgolf's recipe has, from the environment as for the script itself, and what is said."""


def test_what_no_tensor_tells_is_the_script_s(make_checkpoint, text_dir, capsys, monkeypatch):
    for name, (value, _) in TOLD_BY_NO_TENSOR.items():
        monkeypatch.setenv(name.upper(), value)
    checkpoint = make_checkpoint(**BASE | {"ve_layers": "0,2"})
    sizes = {name: value for name, value in BASE.items() if name not in TOLD_BY_NO_TENSOR}
    assert run(SCRIPT, checkpoint, sizes, text_dir) == 0
    captured = capsys.readouterr()
    for _, said in TOLD_BY_NO_TENSOR.values():
        assert said in captured.err and f"taken from {SCRIPT}" in captured.err
    # The numbers are those of the script itself: its GPT by its own settings.
    with script.imported(SCRIPT, float32_only=True, on_cpu=True) as module:
        own = {name: getattr(module.Hyperparameters, name) for name in TOLD_BY_NO_TENSOR}
        model = module.GPT(**BASE | own).eval()
        model.load_state_dict(torch.load(checkpoint, weights_only=True))
        tokens = TokenStream([text_dir / "fineweb_val_000000.bin"], 400).take(0, 161).astype(np.int64)
        with torch.no_grad():
            inputs, targets = (torch.from_numpy(part.reshape(4, 40)) for part in (tokens[:160], tokens[1:]))
            loss = float(model(inputs, targets))
    shown = next(line for line in captured.out.splitlines() if line.lstrip("│ ").startswith("loss"))
    assert float(shown.split("│")[2]) == pytest.approx(loss, abs=2e-6)


def test_settings_that_are_given_beside_the_script_s_are_said(make_checkpoint, text_dir, capsys):
    assert run(SCRIPT, make_checkpoint(**BASE), BASE, text_dir) == 0
    printed = capsys.readouterr().out
    for text in ("its own rope_dims is 8; both have 4", "its own xsa_layers is 0,1,2; both have 2"):
        assert text in printed


@pytest.mark.parametrize(
    ("old", "new", "length", "said"),
    [
        ("if length > self.train_seq_len:", "if False:", 1200, "rope_original_length 0 (the base never rises)"),
        ("train_seq_len: int = 1024", "train_seq_len: int = 30", 40, "rope_original_length 30, taken for"),
    ],
)
def test_the_rotary_base_rises_as_the_script_has_it(
    make_checkpoint, tmp_path, text_dir, capsys, old, new, length, said
):
    changed = changed_script(tmp_path, old, new)
    more = ("--seq-len", length, "--max-tokens", 1300, "--stride", length // 2)
    assert run(changed, make_checkpoint(**BASE), BASE, text_dir, *more) == 0
    assert said in capsys.readouterr().out
    assert run(changed, make_checkpoint(**BASE), BASE | {"rope_original_length": 1024}, text_dir, *more) == 1
    assert "the model has 1024" in capsys.readouterr().out


def rewritten(tmp_path, *changes):
    text = SCRIPT.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (tmp_path / "train_gpt.py").write_text(text)
    return tmp_path / "train_gpt.py"


def test_training_takes_the_script_s_optimizer_settings(make_checkpoint, tmp_path, text_dir, capsys):
    """Numbers in its Hyperparameters, and in the calls of its main."""
    other = rewritten(
        tmp_path,
        ('os.environ.get("HEAD_LR", 0.008)', "0.5"),
        ("weight_decay=args.muon_wd", "weight_decay=0.3"),
        ("token_lr = args.tied_embed_lr if", "token_lr = 2 * args.scalar_lr if True or"),
        ('os.environ.get("MUON_MOMENTUM_WARMUP_START", 0.92)', "0.3"),
        ("parameters(), args.grad_clip_norm", "parameters(), 0.01"),
        ("weight_decay=args.adam_wd", "weight_decay=0.2"),
    )
    assert run(other, make_checkpoint(**ONE_LAYER), ONE_LAYER, text_dir, "--train-steps", 2) == 0
    printed = capsys.readouterr().out
    assert "its own optimizers and groups" in printed
    for said in (
        "optim.adamw.head_learning_rate 0.5 (0.008)",
        "optim.muon.weight_decay 0.3 (0.04)",
        "optim.adamw.token_learning_rate 0.05 (0.035)",
        "optim.muon.momentum_warmup_start 0.3 (0.92)",
        "optim.grad_clip 0.01 (0.3)",
        "optim.adamw.token_weight_decay 0.2 (0.04)",
        "optim.adamw.scalar_weight_decay 0.2 (0.04)",
    ):
        assert said in printed


TABLES = ("tok_emb", "bigram.embed", "ve_shared.embed")
SGD = (
    ("torch.optim.Adam([{", "torch.optim.SGD([{"),
    ("args.head_lr}], **adam)", "args.head_lr}])"),
)


# All of `main` in a block, and training and another optimizer at its end that must not be run.
MAIN = SCRIPT.read_text().partition("def main() -> None:\n")[2].partition("\n\nif __name__")[0]
TRAINING = """
    base_model(torch.zeros(1, 2).long(), torch.zeros(1, 2).long()).backward()
    raise SystemExit("trained")
    optimizer_muon = torch.optim.SGD(base_model.parameters(), lr=args.head_lr)
"""
IN_ONE_BLOCK = [
    (
        MAIN,
        "    try:\n"
        + textwrap.indent(MAIN + TRAINING, "    ")
        + "    finally:\n        dist.destroy_process_group()\n",
    )
]


def test_an_optimizer_that_jgolf_does_not_have_fails(make_checkpoint, tmp_path, text_dir, capsys):
    other = rewritten(tmp_path, *SGD)
    assert run(other, make_checkpoint(**ONE_LAYER), ONE_LAYER, text_dir, "--train-steps", 1) == 1
    printed = capsys.readouterr().out
    assert "lm_head.weight: the script updates it by SGD (rate 0.008, decay 0), jgolf by Adam (rate 0.008" in printed


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ((), []),
        (IN_ONE_BLOCK, []),
        (SGD, ["lm_head.weight: the script updates it by SGD (rate 0.008"]),
        ([("[base_model.lm_head.weight]", "[base_model.tok_emb.bias]")], None),
        (
            [("scalars.append(base_model.smear.gate)", "pass")],
            ["smear.gate: the script updates it not at all, jgolf by"],
        ),
        (
            [("matrices.append(table.proj", "scalars.append(table.proj")],
            ["bigram.proj.weight: ", "ve_shared.proj.weight: "],
        ),
        (
            [("torch.optim.AdamW(tables, ", "torch.optim.AdamW(tables, amsgrad=True, ")],
            [f"{name}.weight: the script updates it by AdamW (rate 0.6, decay 0.04" for name in TABLES],
        ),
    ],
)
def test_groups_are_compared_parameter_by_parameter(tmp_path, changes, problems):
    path, config = rewritten(tmp_path, *changes), RECIPE
    model = dataclasses.replace(RECIPE.model, 
        vocab_size=40, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, bigram_buckets=9, bigram_dim=4,
        xsa_layers=(), rope_dims=4, value_embedding_layers=(1,), value_embedding_dim=4, tie_embeddings=False,
    )  # fmt: skip
    params = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(model).items()}
    with script.imported(path, float32_only=True, on_cpu=True) as module:
        built, _ = script.build_model(module, path, model, params, "cpu")
        wrapped = torch_model.TorchModel(built, path, "float32")
        found = own_optimizers.of_script(module, wrapped, dataclasses.replace(config, model=model))
    if problems is None:
        assert "taken by jgolf's groups" in found.notices[0] and not found.problems
    else:
        assert "its own optimizers and groups" in found.notices[0]
        assert found.config.adamw.token_learning_rate == 0.6  # the scripts' rate of an untied embedding
        for start, problem in zip(problems, found.problems, strict=True):
            assert problem.startswith(start)


def test_a_main_that_makes_no_optimizers_leaves_their_settings(
    make_checkpoint, tmp_path, text_dir, capsys, monkeypatch
):
    text = SCRIPT.read_text()
    (tmp_path / "train_gpt.py").write_text(text[: text.index("def main()")])
    monkeypatch.setenv("MATRIX_LR", "0.1")
    monkeypatch.setenv("HEAD_LR", "0.3")
    more = ("--train-steps", 2)
    assert run(tmp_path / "train_gpt.py", make_checkpoint(**ONE_LAYER), ONE_LAYER, text_dir, *more) == 0
    printed = capsys.readouterr().out
    assert "taken by jgolf's groups" in printed
    assert "optim.muon.learning_rate 0.1 (0.025)" in printed and "head_learning_rate 0.3 (0.008)" in printed


def test_long_sequences_and_reference_windows(make_checkpoint, text_dir):
    """Past 1,024 tokens, where the rotary base grows."""
    more = ("--seq-len", 1200, "--max-tokens", 1500, "--stride", 600, "--reference-windows")
    assert run(SCRIPT, make_checkpoint(**BASE), BASE, text_dir, *more) == 0


def test_bfloat16_agrees_within_its_own_tolerances(make_checkpoint, text_dir):
    more = ("--dtype", "bfloat16", "--train-steps", 2)
    assert run(SCRIPT, make_checkpoint(**ONE_LAYER), ONE_LAYER, text_dir, *more) == 0


def test_a_wrong_layer_is_named(make_checkpoint, tmp_path, text_dir, capsys):
    wrong = changed_script(
        tmp_path, "self.final_norm = RMSNorm()", "self.final_norm = RMSNorm(); self.blocks[1].norm_factor *= 1.01"
    )
    assert run(wrong, make_checkpoint(**BASE), BASE, text_dir) == 1
    printed = capsys.readouterr().out
    assert "block 1 is the first to depart" in printed
    assert "FAILED" in printed


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("36313 * ids", "36314 * ids", "embedding is the first to depart"),
        ("torch.tanh(logits", "torch.tanh(1.001 * logits", "logits is the first to depart"),
    ],
)
def test_a_wrong_start_or_end_is_named(make_checkpoint, tmp_path, text_dir, capsys, old, new, part):
    assert run(changed_script(tmp_path, old, new), make_checkpoint(**BASE), BASE, text_dir) == 1
    assert part in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('p.mul_(1 - group["lr"] * group["weight_decay"])', "pass"),
        ("max(1, update.size(0) / update.size(1)) ** 0.5", "1"),
        ("2.0315", "2.0415"),
    ],
)
def test_another_muon_fails_in_training_alone(make_checkpoint, tmp_path, text_dir, capsys, old, new):
    wrong = changed_script(tmp_path, old, new)
    assert run(wrong, make_checkpoint(**ONE_LAYER), ONE_LAYER, text_dir, "--train-steps", 2) == 1
    before_training, training = capsys.readouterr().out.split("training;")
    assert "FAIL" not in before_training
    assert "FAIL" in training


def test_both_sides_follow_the_config(make_checkpoint, text_dir, capsys):
    checkpoint = make_checkpoint(**BASE)
    assert run(SCRIPT, checkpoint, BASE | {"xsa_last_n": 2}, text_dir) == 0
    assert run(SCRIPT, checkpoint, BASE | {"num_layers": 4}, text_dir) == 2
    assert "contradict each other" in capsys.readouterr().err


def test_what_cannot_be_compared(make_checkpoint, tmp_path, text_dir, monkeypatch, capsys):
    checkpoint = make_checkpoint(**BASE)

    def refused(reference, *more):
        assert run(reference, checkpoint, BASE, text_dir, *more) == 2
        return capsys.readouterr().err

    assert "too few" in refused(SCRIPT, "--seq-len", 400)
    assert "expected --batch and --stride of 1 or more" in refused(SCRIPT, "--batch", 0)
    failing = changed_script(tmp_path, "x = self.final_norm(x)", "x = self.final_norm(x, 3)")
    assert "train_gpt.py: its model fails: TypeError" in refused(failing)
    without_muon = changed_script(tmp_path, "class Muon(torch.optim.Optimizer)", "class Another")
    assert "has no class Muon" in refused(without_muon, "--train-steps", 1)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "jgolf crosscheck needs the package torch" in refused(SCRIPT)


def test_the_pytorch_side_scores_as_the_reference_does():
    """The PyTorch reference's own loss and bits per byte of its artifact."""
    folder = GOLDEN / "small"
    expected = json.loads((folder / "eval.json").read_text())
    tokens = np.load(folder / "eval_tokens.npy").astype(np.int64)
    luts = np.load(folder / "byte_luts.npz")
    tables = ByteTables(*(luts[name] for name in luts.files))
    text = Text.of(tokens, 1, np.append(0, tables.target_bytes(tokens[:-1], tokens[1:])))
    loaded = load_model(folder / "final_model.int6.ptz", str(folder / "config.json"))
    with script.imported(SCRIPT, float32_only=True, on_cpu=True) as module:
        model, _ = script.build_model(module, SCRIPT, loaded.config.model, loaded.params, "cpu")
        wrapped = torch_model.TorchModel(model, SCRIPT, "float32")
        windows = {"standard_seq128": standard_windows(len(tokens), 128)}
        windows["sliding_seq128_stride64"] = sliding_windows(len(tokens), 128, 64, reference_windows=True)
        for name, chosen in windows.items():
            found = summarize(*gathered(torch_model.window_nats(wrapped, tokens, chosen, 128, 16), text))
            assert found.val_loss == pytest.approx(expected[name]["val_loss"], rel=2e-5)
            assert found.val_bpb == pytest.approx(expected[name]["val_bpb"], abs=1e-5)
