"""The command itself, on a PyTorch script that stands for a user's."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jgolf.cli import main  # noqa: E402
from jgolf.data.sentence_piece import ByteTables  # noqa: E402
from jgolf.data.text import Text  # noqa: E402
from jgolf.evaluate.score import gathered, summarize  # noqa: E402
from jgolf.evaluate.windows import sliding_windows, standard_windows  # noqa: E402
from jgolf.load import load_model  # noqa: E402
from jgolf.torch_bridge import script, torch_model  # noqa: E402

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
    without_muon = changed_script(tmp_path, "class Muon", "class Another")
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
