from pathlib import Path

import pytest

from jgolf.data.demo import build_demo
from jgolf.data.tokenizer import Tokenizer, load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus with its tokenizer and shards; read only."""
    folder = tmp_path_factory.mktemp("demo")
    build_demo(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(demo_dir: Path) -> Tokenizer:
    """The demo's tokenizer, 1,024 pieces with byte fallback."""
    return load_tokenizer(demo_dir / "demo_1024_bpe.model")


@pytest.fixture(scope="session")
def golden_loader() -> Path:
    """Three small shards, and the batches that the PyTorch reference's loader yields from them."""
    return GOLDEN / "loader"
