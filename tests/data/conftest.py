from pathlib import Path

import pytest

from jgolf.data.tokenizer import Tokenizer, load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def tokenizer(demo_dir: Path) -> Tokenizer:
    """The demo's tokenizer, 1,024 pieces with byte fallback."""
    return load_tokenizer(demo_dir / "demo_1024_bpe.model")


@pytest.fixture(scope="session")
def golden_loader() -> Path:
    """Three small shards, and the batches that the PyTorch reference's loader yields from them."""
    return GOLDEN / "loader"
