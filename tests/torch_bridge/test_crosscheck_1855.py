"""The cross-check of scripts with weight banks, a loop, lanes and packed documents, on the CPU and without kernels."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jgolf.cli import main  # noqa: E402
from jgolf.config import Config  # noqa: E402
from jgolf.data.shards import TokenStream, write_shard  # noqa: E402
from jgolf.data.text import table_bytes  # noqa: E402
from jgolf.data.tokenizer import load_tokenizer  # noqa: E402
from jgolf.load import load_model  # noqa: E402
from jgolf.model import functional  # noqa: E402
from jgolf.torch_bridge import (  # noqa: E402
    both_sides,
    comparison,
    crosscheck_train,
    kernels,
    own_optimizers,
    own_settings,
    script,
    source,
)
from jgolf.torch_bridge.script import ScriptError  # noqa: E402
from jgolf.torch_bridge.torch_model import TorchModel, document_bounds  # noqa: E402
from jgolf.verbs.crosscheck import in_dtype  # noqa: E402
from tests.pr1855 import FOLDER  # noqa: E402
from tests.torch_bridge.conftest import VOCAB_SIZE  # noqa: E402

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "reference_script_1855.py"
TEXT = SCRIPT.read_text()
PIECE_LENGTH, ROWS = 24, 3
SIZES = {
    "VOCAB_SIZE": VOCAB_SIZE,
    "NUM_LAYERS": 4,
    "MODEL_DIM": 32,
    "NUM_HEADS": 4,
    "NUM_KV_HEADS": 2,
    "MLP_MULT": 3,
    "LOOP_START": 1,
    "LOOP_END": 1,
    "NUM_LOOPS": 1,
    "PARALLEL_START_LAYER": 2,
    "XSA_LAST_N": 3,
    "ROPE_DIMS": 6,
    "GATE_WINDOW": 10,
    "TRAIN_SEQ_LEN": PIECE_LENGTH,
}
"""From the environment, as for the script itself; none is the recipe's."""
TOLERANCES = comparison.TOLERANCES["float32"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices are so small that threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def environment(monkeypatch) -> None:
    for name, value in SIZES.items():
        monkeypatch.setenv(name, str(value))


class Ours(NamedTuple):
    """What jgolf gives: once for all scripts."""

    config: Config
    params: dict[str, np.ndarray]
    tokens: np.ndarray
    results: dict[bool, dict[str, np.ndarray]]
    steps: list[crosscheck_train.Step]


def packed(tokens: np.ndarray) -> np.ndarray:
    return tokens[None, : ROWS * PIECE_LENGTH].astype(np.int32)


LOOPED = [True, True]  # in each step of training


@pytest.fixture(scope="module")
def text(tmp_path_factory, text_dir) -> Path:
    """A folder of tokens whose documents are short and long, with byte counts of their own beside them."""
    folder = tmp_path_factory.mktemp("documents")
    tokens = TokenStream([text_dir / "fineweb_val_000000.bin"], VOCAB_SIZE).take(0, 420).copy()
    tokens[[0, 5, 40, 41, 75, 130, 190, 260, 333]] = 1
    write_shard(folder / "fineweb_val_000000.bin", tokens)
    counts = np.where(tokens == 1, 0, 1 + tokens % 5)
    write_shard(folder / "fineweb_val_bytes_000000.bin", counts)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """As the script saves it: the token embedding in bfloat16; random, so that every part matters."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SIZES.items():
            patch.setenv(name, str(value))
        with script.imported(SCRIPT, float32_only=True, on_cpu=True) as module:
            model = module.GPT(module.Hyperparameters())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (parameter.shape[-1] ** -0.5 if "bank" in name else 0.4))
    state = model.state_dict()
    state["tok_emb.weight"] = state["tok_emb.weight"].bfloat16()
    path = tmp_path_factory.mktemp("checkpoint") / "final_model.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def ours(checkpoint, text) -> Ours:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SIZES.items():
            patch.setenv(name, str(value))
        own = own_settings.of_script(SCRIPT)
        loaded = load_model(checkpoint, None, None, own)
        config = in_dtype(loaded.config, "float32")
        with script.imported(SCRIPT, float32_only=True, on_cpu=True) as module:
            wrapped = TorchModel(module.GPT(module.Hyperparameters()), SCRIPT, "float32")
            optim = own_optimizers.of_script(module, wrapped, config).config
    config = dataclasses.replace(config, optim=optim)
    tokens = TokenStream([text / "fineweb_val_000000.bin"], VOCAB_SIZE).take(0, 420)
    results = {}
    for looped in (False, True):
        outputs = partial(functional.block_outputs, config.model, looped=looped, piece_length=PIECE_LENGTH)
        results[looped] = jax.tree.map(np.asarray, jax.jit(outputs)(loaded.params, packed(tokens)))
    stream = TokenStream([text / "fineweb_val_000000.bin"], VOCAB_SIZE)
    batches = crosscheck_train.batches_of(stream, ROWS, PIECE_LENGTH, len(LOOPED), documents=True)
    steps = list(crosscheck_train.jax_steps(config, loaded.params, batches, LOOPED, PIECE_LENGTH))
    return Ours(config, loaded.params, tokens, results, steps)


def rewritten(tmp_path, *changes: tuple[str, str]) -> Path:
    text = TEXT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (tmp_path / "train_gpt.py").write_text(text)
    return tmp_path / "train_gpt.py"


@contextlib.contextmanager
def theirs(path: Path, ours: Ours):
    """The script's module, its model with our weights, and what was put in the place of kernels."""
    with kernels.replaced() as replaced, script.imported(path, float32_only=True, on_cpu=True) as module:
        model, notices = script.build_model(module, path, ours.config.model, ours.params, "cpu")
        assert notices == []
        yield module, TorchModel(model, path, "float32"), replaced


def first_departure(path: Path, ours: Ours, looped: bool = True) -> str | None:
    with theirs(path, ours) as (_, model, _):
        both_sides._phases(model, ours.config)
        model.set_looped(looped)
        found = model.block_outputs(packed(ours.tokens), PIECE_LENGTH)
    checks, first = comparison.by_layer(found, ours.results[looped], TOLERANCES.values)
    assert [check.name for check in checks][-1] == "logits"
    return first


# --- the whole command -----------------------------------------------------------------------


def run(reference: Path, checkpoint: Path, text: Path, text_dir: Path, *more) -> int:
    arguments = ["crosscheck", "--reference", reference, "--checkpoint", checkpoint, "--tokens"]
    arguments += [text / "fineweb_val_000000.bin", text / "fineweb_val_bytes_000000.bin"]
    arguments += ["--tokenizer", text_dir / "t.model", "--max-tokens", 250, "--stride", 12, "--batch", ROWS, *more]
    return main([str(argument) for argument in arguments])


@pytest.mark.slow
def test_everything_agrees_in_training_too(checkpoint, text, text_dir, capsys):
    assert run(SCRIPT, checkpoint, text, text_dir, "--train-steps", 4) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed and printed.count("pass") >= 2 * 6 + 4 * 2
    for said in (
        "its own optimizers and groups",
        "MLP: its kernel linear_leaky_square_kernel needs a GPU; run as the script itself runs it outside training",
        "GPT: its kernel softcapped_loss_kernel needs a GPU; run as the script itself runs it outside training",
    ):
        assert said in printed


def test_the_command(checkpoint, text, text_dir, ours, capsys):
    assert run(SCRIPT, checkpoint, text, text_dir) == 0
    captured = capsys.readouterr()
    assert "FAIL" not in captured.out and captured.out.count("pass") >= 2 * 6
    for said in ("loop_layers 1 (the recipe pr1855 has 3,4,5)", "num_loops 1 (the recipe pr1855 has 2)"):
        assert said in captured.err
    for said in (
        "its loop is turned on by looping_active",
        f"documents of {PIECE_LENGTH}, loop off",
        f"documents of {PIECE_LENGTH}, loop on",
    ):
        assert said in captured.out
    # Bits per byte by the script itself: rows of packed documents, and the bytes of an ordinary tokenizer's tables.
    tokens = np.fromfile(text / "fineweb_val_000000.bin", "<u2", offset=1024)[:251].astype(np.int64)
    counts = table_bytes(tokens, load_tokenizer(text_dir / "t.model"))
    nats = 0.0
    with theirs(SCRIPT, ours) as (module, model, _), torch.no_grad():
        model.model.looping_active = True
        for first in range(0, 250, ROWS * PIECE_LENGTH):
            row = torch.from_numpy(tokens[first : first + ROWS * PIECE_LENGTH + 1])
            bounds = module.document_bounds(row[:-1], PIECE_LENGTH)
            nats += (len(row) - 1) * model.model(row[None, :-1], row[None, 1:], bounds, PIECE_LENGTH).item()
    shown = [line for line in captured.out.splitlines() if "bits per byte, packed documents" in line]
    assert float(shown[1].split("│")[2]) == pytest.approx(nats / np.log(2) / counts[1:].sum(), abs=2e-6)


@pytest.mark.slow
def test_a_run_starts_from_its_checkpoint(checkpoint, text, text_dir, ours, tmp_path):
    """With its banks and its embedding in bfloat16: the first validation is the script's own, without the loop."""
    tokens = ours.tokens[:289]
    write_shard(tmp_path / "fineweb_val_000000.bin", tokens)
    write_shard(tmp_path / "fineweb_train_000000.bin", ours.tokens)
    settings = {
        "model": {
            "vocab-size": VOCAB_SIZE,
            "num-layers": 4,
            "model-dim": 32,
            "num-heads": 4,
            "num-kv-heads": 2,
            "mlp-multiple": 3,
            "loop-layers": 1,
            "num-loops": 1,
            "lanes-from": 2,
            "xsa-layers": (1, 2, 3),
            "rope-dims": 6,
            "gate-window": 10,
            "compute-dtype": "float32",
        },
        "train": {"time-cap-s": 0, "batch-tokens": 192, "num-ranks": 1, "seq-len": PIECE_LENGTH},
    }
    words = [
        str(word)
        for part, values in settings.items()
        for name, value in values.items()
        for word in (f"--{part}.{name}", *(value if isinstance(value, tuple) else (value,)))
    ]
    words += ["--data", tmp_path, "--tokenizer", text_dir / "t.model", "--run-dir", tmp_path / "run", "--steps", "0"]
    command = [sys.executable, ROOT / "train.py", "pr1855", "--init-from", checkpoint, *words]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(r"^step:0/0 val_loss:(\S+)", done.stdout, re.MULTILINE)
    with theirs(SCRIPT, ours) as (_, model, _):
        row = tokens[None].astype(np.int64)
        expected = model.losses(row[:, :-1], row[:, 1:], PIECE_LENGTH).mean()
    assert float(found) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_a_wrong_layer_fails_the_command(checkpoint, text, text_dir, tmp_path, capsys):
    wrong = rewritten(tmp_path, ("resid[0] * a +", "resid[0] * block.mixed(a, x0) +"))
    assert run(wrong, checkpoint, text, text_dir, "--max-tokens", 80) == 1
    assert "attention of block 3 is the first to depart" in capsys.readouterr().out


# --- one mistake each ------------------------------------------------------------------------

MISTAKES = {
    "two lanes in sequence": (
        "block.transformed(m, mlp_w)",
        "block.transformed(m + attn_out, mlp_w)",
        "MLP of block 2",
    ),
    "gate input without the depth's factor": (
        "gate = F.linear(n[..., :",
        "gate = F.linear(rms(n)[..., :",
        "attention of block 1",
    ),
    "P read as (destination, source)": ("post[1, 0] * mlp_out", "post[0, 1] * mlp_out", "attention of block 3"),
    "no BOS mask in the smear": ("(input_ids[:, 1:] != BOS_ID)", "(input_ids[:, 1:] >= 0)", "embedding"),
    "MLP lane mixed with x0": (
        "block.transformed(m, mlp_w)",
        "block.transformed(block.mixed(m, x0), mlp_w)",
        "MLP of block 2",
    ),
    "smear after the first rms": (
        "rms(self.smeared(input_ids, self.tok_emb(input_ids)))",
        "self.smeared(input_ids, rms(self.tok_emb(input_ids)))",
        "embedding",
    ),
    "smear gate reads the previous token": (
        "self.smear_gate(here[..., :",
        "self.smear_gate(e[:, :-1][..., :",
        "embedding",
    ),
    "skip blended into both lanes": ("stream, lanes[1], x0", "stream, stream, x0", "MLP of block 2"),
    "skip rows from the other end": ("self.skip_gates[k]", "self.skip_gates[-1 - k]", "attention of block 1, run 2"),
    "g and 1 - g swapped": (
        "gate * stream + (1 - gate) * (",
        "(1 - gate) * stream + gate * (",
        "attention of block 1, run 2",
    ),
    "1/2 outside the attention gate's sigmoid": (
        "torch.sigmoid(self.gate_scale * gate)",
        "self.gate_scale * torch.sigmoid(gate)",
        "attention of block 0",
    ),
    "leaky ReLU's square halved": (
        "F.leaky_relu(F.linear(x, up_w), negative_slope=0.5).square()",
        "F.leaky_relu(F.linear(x, up_w), negative_slope=0.5**0.5).square()",
        "MLP of block 0",
    ),
    "the final lane alone": ("(lanes[0] + lanes[1]) / 2", "lanes[0]", "logits"),
}
"""What is changed, to what, and what has to be named."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_where_it_begins(tmp_path, ours, mistake):
    old, new, expected = MISTAKES[mistake]
    assert first_departure(rewritten(tmp_path, (old, new)), ours) == expected


def test_without_the_loop_everything_agrees_too(ours):
    assert first_departure(SCRIPT, ours, looped=False) is None
    assert first_departure(SCRIPT, ours, looped=True) is None


def test_exact_rotary_frequencies_are_the_script_s(tmp_path, ours):
    """They are told from rounded ones, and taken over where they were only assumed."""
    exact = rewritten(tmp_path, (".to(device).bfloat16()", ".to(device)"))
    assert first_departure(exact, ours) is not None
    with theirs(exact, ours) as (_, model, _):
        rotary = own_settings.rotary_of(model)
    found, notices = own_settings.with_rotary_of(ours.config.model, rotary, ["rope_frequency_dtype"], "x.py")
    assert found == dataclasses.replace(ours.config.model, rope_frequency_dtype="float32")
    assert notices == ["x.py: its rotary tables have rope_frequency_dtype float32, taken for the assumed bfloat16"]
    with theirs(SCRIPT, ours) as (_, model, _):
        assert own_settings.with_rotary_of(ours.config.model, own_settings.rotary_of(model), [], "x.py")[1] == []


# --- other interfaces ------------------------------------------------------------------------

TAIL = TEXT[TEXT.index("    def forward_logits(") : TEXT.index("# --- training")]


def renamed(**names: str) -> str:
    """GPT's last methods with other names of parameters."""
    return re.sub("|".join(names), lambda match: names[match[0]], TAIL)


NO_LOGITS = TEXT[
    TEXT.index("    def forward_logits(") : TEXT.index("    def forward(self, input_ids: Tensor, target_ids")
]
WRITTEN_OUT = (
    "        logits = self.forward_logits(input_ids, cu_seqlens, max_seqlen)\n",
    "        logits = F.linear(self.forward_hidden(input_ids, cu_seqlens, max_seqlen), self.tok_emb.weight)\n"
    "        logits = self.logit_softcap * torch.tanh(logits / self.logit_softcap)\n",
)
FUNCTION = [
    ("class Optimizers:", "class Unused:"),
    (
        "# --- network",
        "def make_groups(settings, net):\n"
        "    banks = [net.qo_bank, net.kv_bank, net.mlp_up_bank, net.mlp_down_bank]\n"
        "    rest = [p for n, p in net.named_parameters() if 'bank' not in n and 'tok_emb' not in n]\n"
        "    adam = {'betas': (settings.beta1, settings.beta2), 'eps': settings.adam_eps}\n"
        "    tok = torch.optim.AdamW(\n"
        "        [net.tok_emb.weight], lr=settings.tied_embed_lr, weight_decay=settings.embed_wd, **adam)\n"
        "    scalar = torch.optim.AdamW(rest, lr=settings.scalar_lr, weight_decay=settings.adam_wd, **adam)\n"
        "    muon = Muon(banks, settings.matrix_lr, settings.muon_momentum, settings.muon_backend_steps,\n"
        "                weight_decay=settings.muon_wd, row_normalize=settings.muon_row_normalize)\n"
        "    return [tok, scalar, muon]\n\n\n# --- network",
    ),
    ("optimizers = Optimizers(h, base_model)", "optimizers = make_groups(h, base_model)"),
]
INTERFACES = {
    "other names of parameters": [
        (TAIL, renamed(input_ids="ids", target_ids="y", cu_seqlens="starts", max_seqlen="longest"))
    ],
    "names that say nothing": [(TAIL, renamed(input_ids="a", target_ids="b", cu_seqlens="c", max_seqlen="d"))],
    "the loop under another name": [("looping_active", "second_phase")],
    "the loop turned by a method": [
        (
            "    def forward_hidden(",
            "    def set_loop(self, on):\n        self.encoder_now, self.decoder_now = (\n            "
            "(self.encoder_on, self.decoder_on) if on else (range(half := self.num_layers // 2),\n            "
            "range(half, self.num_layers)))\n\n    def forward_hidden(",
        ),
        ("self.looping_active = False", "self.set_loop(False)"),
        ("self.encoder_on if self.looping_active else range(half)", "self.encoder_now"),
        ("self.decoder_on if self.looping_active else range(half, self.num_layers)", "self.decoder_now"),
    ],
    "no forward_logits": [(NO_LOGITS, ""), WRITTEN_OUT],
    "logits where there are no targets": [
        (NO_LOGITS, ""),
        WRITTEN_OUT,
        ("target_ids: Tensor, cu_seqlens", "target_ids: Tensor | None = None, cu_seqlens"),
        ("if self.training:\n            x =", "if self.training and target_ids is not None:\n            x ="),
        ("        return F.cross_entropy(", "        return logits if target_ids is None else F.cross_entropy("),
    ],
    "optimizers of a function": FUNCTION,
    "optimizers of a class that asks itself": [
        ("        scalars = [p for", "        self.scalars = [p for"),
        ('{"params": scalars,', '{"params": self.scalars_of(),'),
        ("    def __iter__(", "    def scalars_of(self):\n        return self.scalars\n\n    def __iter__("),
    ],
    "attention in pairs": [
        ("y = flash_attn_3_func(q, k, v, causal=True)", "y, _ = flash_attn_3_func(q, k, v, causal=True)"),
        ("            )[None]\n", "            )[0][None]\n"),
        ("window_size=(-1, -1)", "window_size=(max_seqlen, 0)"),
    ],
    "settings by another name": [("def __init__(self, h):", "def __init__(self, everything):\n        h = everything")],
    "no way around the MLP's kernel": [("if self.training and self.use_fused:", "if True:")],
    "no way around the loss's kernel": [
        ("        if self.training:\n            x =", "        if True:\n            x ="),
    ],
    "Muon by another name": [("class Muon(", "class BankMuon("), ("_muon = Muon(", "_muon = BankMuon(")],
    "kernels as they are tuned": [
        ("@triton.jit\ndef linear", "@triton.autotune([triton.Config({})], key=['K'])\n@triton.jit\ndef linear"),
        ("import triton.language as tl\n", "import brotli, triton.language as tl\nfrom triton.language import x\n"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("interface", INTERFACES)
def test_other_interfaces(tmp_path, ours, text, interface):
    """Logits without and with the loop, and training steps with it, as of the script that the others are made from."""
    path = rewritten(tmp_path, *INTERFACES[interface])
    with theirs(path, ours) as (module, model, replaced):
        phases, notices = both_sides._phases(model, ours.config)
        assert phases == (False, True) and len(notices) == 1
        assert model.takes_documents
        for looped in phases:
            model.set_looped(looped)
            found = model.logits(packed(ours.tokens), PIECE_LENGTH).numpy()
            assert comparison.largest("", found, ours.results[looped]["logits"], TOLERANCES.values).passed
        own = own_optimizers.of_script(module, model, ours.config)
        assert own.problems == [] and own.config == ours.config.optim
        assert "its own optimizers and groups" in own.notices[0]
        stream = TokenStream([text / "fineweb_val_000000.bin"], VOCAB_SIZE)
        batches = crosscheck_train.batches_of(stream, ROWS, PIECE_LENGTH, len(LOOPED), documents=True)
        steps = crosscheck_train.torch_steps(own.optimizers, model, ours.config, batches, LOOPED, PIECE_LENGTH)
        for (loss, params), (our_loss, our_params) in zip(steps, ours.steps, strict=True):
            assert our_loss == pytest.approx(loss, rel=TOLERANCES.train_loss)
            apart, moved = (
                comparison.norm(np.linalg.norm(params[path] - other[path]) for path in params)
                for other in (our_params, ours.params)
            )
            assert apart <= TOLERANCES.distance * moved
        said = [*replaced.notices, *model.notices]
    by_formula = "leaky_relu(x·W_upᵀ, ½)²·W_downᵀ in its place"
    assert any(by_formula in text for text in said) == (interface == "no way around the MLP's kernel")
    own_logits = "the cross-entropy of its own logits in its place"
    assert any(own_logits in text for text in said) == (interface == "no way around the loss's kernel")


WRONG_TRAINING = {
    "columns normalized": ("float().norm(dim=-1, keepdim=True)", "float().norm(dim=-2, keepdim=True)"),
    "one norm for a bank": ("x.norm(dim=(-2, -1), keepdim=True)", "x.norm()"),
    "momentum as it was": ('gradient.add(momentum, alpha=group["momentum"])', "gradient.add(momentum)"),
    "a loss without some targets": ("target_ids.flatten())\n\n\n#", "target_ids.flatten(), ignore_index=1)\n\n\n#"),
    "the loop's derivative": ("skips.append(x)", "skips.append(x.detach())"),
}


@pytest.mark.parametrize("mistake", WRONG_TRAINING)
def test_a_mistake_in_training_alone(tmp_path, ours, text, mistake):
    path = rewritten(tmp_path, WRONG_TRAINING[mistake])
    assert first_departure(path, ours) is None
    with theirs(path, ours) as (module, model, _):
        both_sides._phases(model, ours.config)
        own = own_optimizers.of_script(module, model, ours.config)
        stream = TokenStream([text / "fineweb_val_000000.bin"], VOCAB_SIZE)
        batches = crosscheck_train.batches_of(stream, ROWS, PIECE_LENGTH, len(LOOPED), documents=True)
        *_, (_, params) = crosscheck_train.torch_steps(
            own.optimizers, model, ours.config, batches, LOOPED, PIECE_LENGTH
        )
    apart, moved = (
        comparison.norm(np.linalg.norm(params[path] - other[path]) for path in params)
        for other in (ours.steps[-1][1], ours.params)
    )
    assert apart > TOLERANCES.distance * moved


# --- what cannot be told ---------------------------------------------------------------------


def test_a_loop_that_nothing_turns_on_is_said(tmp_path, ours):
    path = rewritten(
        tmp_path,
        ("self.looping_active = False", "self.state = ['off']"),
        ("self.looping_active", "len(self.state) > 1"),
    )
    with theirs(path, ours) as (_, model, _):
        phases, (notice,) = both_sides._phases(model, ours.config)
    assert phases == (False,)
    assert "what turns the loop of its GPT on was not found (looked for an attribute" in notice
    assert "compared with the loop off" in notice


def test_another_loop_than_the_model_s_is_said(tmp_path, ours):
    path = rewritten(tmp_path, ("* (h.num_loops + 1)", "* (h.num_loops + 2)"), ("min(half, len(order) - half)", "2"))
    with theirs(path, ours) as (_, model, _):
        _, notices = both_sides._phases(model, ours.config)
    assert f"{path}: with the loop on its blocks run 0 1×3 2 3, jgolf's 0 1×2 2 3" in notices


def test_no_logits_anywhere(tmp_path, ours):
    loss = ("F.cross_entropy(logits.flatten(0, 1).float(), target_ids.flatten())", "logits.mean()")
    path = rewritten(tmp_path, (NO_LOGITS, ""), WRITTEN_OUT, loss)
    with (
        theirs(path, ours) as (_, model, _),
        pytest.raises(ScriptError, match="or, as that wants targets, for its call"),
    ):
        model.logits(packed(ours.tokens))


def test_a_kernel_that_nobody_knows(tmp_path, ours):
    path = rewritten(
        tmp_path,
        ("if self.training and self.use_fused:", "if True:"),
        ("fused_mlp(x, up_w, down_w)", "fused_mlp(x, up_w[:, :, None], down_w)"),
    )
    with theirs(path, ours) as (_, model, _), pytest.raises(ScriptError) as error:
        model.logits(packed(ours.tokens))
    assert "its Triton kernel linear_leaky_square_kernel needs a GPU, and nothing else is known" in str(error.value)


def test_settings_that_jgolf_does_not_have_are_said(monkeypatch):
    monkeypatch.setenv("ROPE_YARN", "1")
    monkeypatch.setenv("PARALLEL_FINAL_LANE", "attn")
    with script.imported(SCRIPT, float32_only=True, on_cpu=True) as module:
        assert own_settings.unknown_here(module, "x.py") == [
            "x.py: its own rope_yarn is on, which jgolf's network does not have; it has off",
            "x.py: its own parallel_final_lane is attn, which jgolf's network does not have; it has mean",
        ]


MADE, RESTORED = "base_model = GPT(h).to(device).bfloat16()", "\n    restore_fp32_params(base_model)"
IN_A_FUNCTION = [
    (MADE + RESTORED, "base_model = GPT(h)\n    mixed(base_model)"),
    ("def train_model(", "def mixed(net):\n    net.bfloat16()\n    restore_fp32_params(net)\n\n\ndef train_model("),
]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], True),
        ([(MADE, "base_model = GPT(h).to(device)")], False),
        ([(MADE, "base_model = GPT(h).to(device=device, dtype=torch.bfloat16)")], True),
        ([(MADE, "base_model = GPT(h)\n    base_model.bfloat16()")], True),
        ([(MADE, "base_model = GPT(h)\n    base_model.tok_emb.bfloat16()")], False),
        ([(MADE + RESTORED, "base_model = GPT(h)\n    restore_fp32_params(base_model.bfloat16())")], True),
        ([("self.init_weights(h.tied_embed_init_std)", "self.bfloat16()"), (MADE, "base_model = GPT(h)")], True),
        (IN_A_FUNCTION, True),
    ],
)
def test_whether_the_model_goes_through_bfloat16(tmp_path, changes, expected):
    with script.imported(rewritten(tmp_path, *changes), float32_only=True, on_cpu=True) as module:
        assert source.casts_model_to_bfloat16(module) is expected


@pytest.mark.parametrize("folder", ["loader", "loader_edges"])
def test_boundaries_are_those_of_the_original_loader(folder):
    cases = json.loads((FOLDER / folder / "cases.json").read_text())
    with np.load(FOLDER / folder / "batches.npz") as arrays:
        taken = [name.removesuffix("/x") for name in arrays.files if name.endswith("/x")]
        assert len(taken) > 20
        for name in taken:
            case = cases[int(name.partition("/")[0].removeprefix("case"))]
            found = document_bounds(arrays[f"{name}/x"].ravel(), case["max_doc_len"])
            np.testing.assert_array_equal(found, arrays[f"{name}/cu"], err_msg=name)
