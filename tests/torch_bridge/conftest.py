"""A PyTorch training script, models of odd shapes made by it, and text to compare them on."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jgolf.data.sentence_piece import SentencePieceTokenizer
from jgolf.data.shards import write_shard
from jgolf.data.train_tokenizer import train_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
SCRIPT = Path(__file__).parent / "reference_script.py"
VOCAB_SIZE = 400


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with t.model, of VOCAB_SIZE pieces, and fineweb_val_000000.bin."""
    folder = tmp_path_factory.mktemp("text")
    texts = [inspect.getsource(module) for module in (json.decoder, json.encoder, inspect)]
    model_bytes = train_tokenizer([line for text in texts for line in text.splitlines()], VOCAB_SIZE)
    (folder / "t.model").write_bytes(model_bytes)
    tokenizer = SentencePieceTokenizer(folder / "t.model", model_bytes)
    assert tokenizer.vocab_size == VOCAB_SIZE
    ids = [tokenizer.bos_id, *tokenizer.encode(texts[0]), tokenizer.bos_id, *tokenizer.encode(texts[1])]
    write_shard(folder / "fineweb_val_000000.bin", ids)
    return folder


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a state dict of the script's GPT with random weights, large enough that every part matters."""
    torch = pytest.importorskip("torch")
    from jgolf.torch_bridge import script

    def make(seed: int = 0, **settings: Any) -> Path:
        torch.manual_seed(seed)
        with script.imported(SCRIPT, float32_only=True, on_cpu=True) as module:
            model = module.GPT(**settings)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                is_matrix = parameter.ndim == 2 and "embed" not in name and "resid_mix" not in name
                parameter.add_(noise * (parameter.shape[-1] ** -0.5 if is_matrix else 0.3))
        path = tmp_path / f"model{seed}.pt"
        torch.save(model.state_dict(), path)
        return path

    return make


@pytest.fixture
def golden_state() -> dict[str, np.ndarray]:
    """The tensors of a small reference checkpoint by their PyTorch names."""
    arrays = np.load(GOLDEN / "tiny" / "model.npz")
    return {name.removeprefix("params/"): arrays[name] for name in arrays.files if name.startswith("params/")}
