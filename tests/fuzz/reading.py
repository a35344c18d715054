"""Reading, as the verbs do, and what must hold of a value that was read from a damaged file all the same.

Each function reads the example in a folder, and raises AssertionError where the value is none that such a file may
stand for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jgolf import config as configs
from jgolf import files, history
from jgolf.artifact import container, safe_tensors
from jgolf.artifact.missing import missing
from jgolf.artifact.scoring import read_artifact
from jgolf.artifact.seeds import SeedRun, best_scorer
from jgolf.artifact.story import Sizes, Submitter, readme, summary
from jgolf.compare.cli import _score_name
from jgolf.compare.unit import unit_of
from jgolf.compress.container import Reader
from jgolf.data.demo import _what_is_not_the_demo
from jgolf.data.documents import read_documents
from jgolf.data.shards import open_shard
from jgolf.data.text import read_text
from jgolf.data.tokenizer import load_tokenizer
from jgolf.model.functional import parameter_shapes
from jgolf.report.cli import page_and_csv
from jgolf.report.curves import history_plots
from jgolf.report.groups import with_groups
from jgolf.sweep.folder import SweepFolder
from jgolf.sweep.grid import make_runs
from jgolf.train.log import RunLog
from tests.fuzz import examples
from tests.fuzz.examples import CONFIG, VOCAB_SIZE


def _assert_finite(arrays: Mapping[str, np.ndarray]) -> None:
    assert all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")


def read_stored(folder: Path) -> Any:
    stored, metadata = container.read(folder / "model.jgolf")
    weights = {path: tensor.dequantize() for path, tensor in stored.items()}
    _assert_finite(weights)
    return weights, metadata


def read_model(folder: Path) -> Any:
    artifact = read_artifact(folder / "model.jgolf")
    assert parameter_shapes(artifact.model) == {path: tensor.shape for path, tensor in artifact.stored.items()}
    return artifact.params()


def read_safetensors(folder: Path) -> Any:
    artifact, _ = safe_tensors.read(folder / "model.safetensors")
    assert parameter_shapes(artifact.model) == {path: tensor.shape for path, tensor in artifact.stored.items()}
    return artifact.params()


def read_compressed(folder: Path) -> Any:
    original = io.BytesIO()
    with (folder / "a.txt.jgz").open("rb") as file:
        reader = Reader(file, "a.txt.jgz")
        examples.UniformCodec(load_tokenizer(folder / "t.model")).decompress(reader, original, "a.txt.jgz")
    return original.getvalue()


def read_shard(folder: Path) -> Any:
    tokens = open_shard(folder / "a_train_0.bin", VOCAB_SIZE)
    assert tokens.ndim == 1 and (len(tokens) == 0 or tokens.max() < VOCAB_SIZE)
    return np.array(tokens)


def read_counted(folder: Path) -> Any:
    text = read_text([folder / "a_val_000000.bin"], load_tokenizer(folder / "t.json"))
    assert len(text.bytes) == len(text.tokens) and not text.bytes[text.tokens == 1].any()
    return text.tokens, text.starts, text.bytes


def read_tokenizer(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        tokenizer = load_tokenizer(folder / name)
        ids, num_bytes = tokenizer.encode_with_bytes("Abc def, naïve 漢字 ﷺ 12\n" * 3)
        assert len(ids) == len(num_bytes) and ids == tokenizer.encode("Abc def, naïve 漢字 ﷺ 12\n" * 3)
        assert all(0 <= token < tokenizer.vocab_size for token in ids) and min(num_bytes, default=0) >= 0
        target_bytes = tokenizer.target_bytes(np.array(ids[:-1], int), np.array(ids[1:], int))
        return tokenizer.decode(range(tokenizer.vocab_size)), ids, num_bytes, target_bytes, tokenizer.table_fault

    return read


def read_demo_manifest(folder: Path) -> Any:
    return _what_is_not_the_demo(folder)


def settle(folder: Path) -> Any:
    """Does what a journal says, within its own folder."""
    files.settle(folder / "whole")
    assert (folder / "other").read_bytes() == b"of no concern"
    return sorted(path.name for path in (folder / "whole").iterdir())


def read_texts(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        texts = list(read_documents([folder / name]))
        assert all(text == text.encode().decode() for text in texts)
        return texts

    return read


def read_histories(name: str) -> Callable[[Path], Any]:
    """As `report` and `compare` do, but for the drawing."""

    def read(folder: Path) -> Any:
        runs = with_groups(history.read_histories(folder / name))
        plots = [(plot.name, plot.alt) for plot in history_plots(runs)]
        pages = page_and_csv([dataclasses.replace(run, artifact=None) for run in runs])
        unit_of((runs[:1], runs[1:] or runs), _score_name(runs, "auto"))
        return plots, pages

    return read


def tell_of_seed(folder: Path) -> Any:
    """As a submission does of the runs that it is given."""
    run = SeedRun.read(folder)
    if run.result is None:
        return None
    scorer = best_scorer([run])
    told = Submitter("a", "b", "c", "d"), [run], ["train.log"], scorer, missing("a", "c", [run], scorer)
    return files.json_text(summary(*told)), readme(*told, Sizes(1, 2, 3), "3.12")


def read_config(folder: Path) -> Any:
    return configs.validate(configs.read_json(folder / "config.json"))


def read_sweep(folder: Path) -> Any:
    found = SweepFolder(folder, make_runs(CONFIG, 2, []))
    return [result.row() for result in found.results]


def resume_log(folder: Path) -> Any:
    log = RunLog(folder, resume_step=10)
    log.close()
    return (folder / "metrics.jsonl").read_bytes()


def read_option(folder: Path) -> Any:
    from jgolf.torch_bridge import config_option

    return config_option.parse(str(folder / "option.json"))


def read_state(folder: Path) -> Any:
    from jgolf.torch_bridge import checkpoint

    return checkpoint.read(folder / "model.pt")


def read_reference(folder: Path) -> Any:
    from jgolf.torch_bridge import reference_artifact

    stored, _ = reference_artifact.read(folder / "model.ptz")
    return {path: tensor.dequantize() for path, tensor in stored.items()}


def read_weights(folder: Path) -> Any:
    """As an export does."""
    from jgolf.train.checkpoint import load_weights

    _, params = load_weights(folder)
    return params


def go_on(folder: Path) -> Any:
    """As a resumed run does."""
    from jgolf.train.checkpoint import Checkpoints

    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        state, elapsed_s = checkpoints.restore(CONFIG)
        config, data = checkpoints.made_with()
    assert 0 <= elapsed_s < float("inf") and isinstance(data, str)
    return state._asdict(), elapsed_s, config, data


def go_on_from_a_good_one(folder: Path) -> Any:
    """As a resumed run does that skips damaged checkpoints: its state is that of a step, value by value."""
    from jgolf.train.checkpoint import Checkpoints

    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        aside = checkpoints.set_damaged_aside(CONFIG)
        state, elapsed_s = checkpoints.restore(CONFIG)
        step = checkpoints.latest_step
    assert elapsed_s == step and all(path.is_dir() for path in aside)
    assert _bytes(state) == _bytes_of_step(step)
    return step


@functools.cache
def _bytes_of_step(step: int) -> list[bytes]:
    return _bytes(examples.state_of(step))


def _bytes(state: Any) -> list[bytes]:
    import jax

    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
