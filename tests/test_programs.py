"""Compiled programs kept whole: loaded without tracing where all is as it was, made anew where anything is not."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jgolf import programs
from jgolf.bench.running import one_device, random_batch
from jgolf.config import Config
from jgolf.data.batches import Batch
from jgolf.train.beginning import random_state
from jgolf.train.mesh import AXIS, CompiledStep, lower_step, replicated
from jgolf.train.step import abstract_state
from tests.conftest import NANO, RECIPE

MESH = Mesh(np.array(jax.devices()[:1]), ("data",))


class Scaling:
    """Programs that multiply by a factor; counts how often one was traced."""

    def __init__(self):
        self.traced = 0

    def __call__(self, factor: float = 3.0, origin: object = None, size: int = 3, mesh: Mesh = MESH) -> int:
        """Runs one, from the folder or not; the times that any was traced so far."""

        def program(x):
            self.traced += 1
            return {"scaled": factor * x}

        x = jnp.arange(size, dtype=jnp.float32)
        lower = lambda: jax.jit(program, donate_argnums=0).lower(x)  # noqa: E731
        compiled = programs.compiled(lower, origin or factor, x, mesh, {})
        np.testing.assert_array_equal(compiled(x)["scaled"], np.float32(factor) * np.arange(size, dtype=np.float32))
        assert x.is_deleted()  # donated to a program from a file, too
        return self.traced


@contextlib.contextmanager
def setting(name: str, value: object) -> Iterator[None]:
    """One of JAX's own, while the block runs."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where programs are kept in a test. JAX's own cache has none of them, however long they took to compile."""
    monkeypatch.setattr(programs, "folder", lambda: tmp_path / "programs")
    with setting("jax_persistent_cache_min_compile_time_secs", 1e9):
        yield tmp_path / "programs"


def files_of(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"*.{kind}"))


def test_a_kept_program_is_not_traced_again(folder: Path) -> None:
    scale = Scaling()
    assert [scale(), scale(), scale()] == [1, 1, 1]
    assert len(files_of(folder, "program")) == len(files_of(folder, "origin")) == 1


def test_what_it_is_made_from_tells_programs_apart(folder: Path) -> None:
    scale = Scaling()
    assert [scale(3.0), scale(4.0), scale(3.0, size=5), scale(3.0), scale(4.0), scale(3.0, size=5)] == [
        1,
        2,
        3,
        3,
        3,
        3,
    ]
    assert len(files_of(folder, "program")) == 3
    assert scale(3.0, mesh=Mesh(np.array(jax.devices()[:1]), ("other",))) == 4


def test_another_origin_of_the_same_text_shares_its_program(folder: Path) -> None:
    scale = Scaling()
    assert [scale(origin="one"), scale(origin="other"), scale(origin="other")] == [1, 2, 2]
    assert (len(files_of(folder, "program")), len(files_of(folder, "origin"))) == (1, 2)


@pytest.mark.parametrize("changed", ["_source", "_installed"])
def test_other_code_is_traced(folder: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    scale = Scaling()
    assert scale() == 1
    monkeypatch.setattr(programs, changed, lambda: "another")
    assert [scale(), scale()] == [2, 2]
    # The same text is the same program for the same packages only.
    assert len(files_of(folder, "program")) == {"_source": 1, "_installed": 2}[changed]


def test_settings_of_jax_and_xla_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Scaling()
    assert scale() == 1
    with jax.default_matmul_precision("highest"):
        assert scale() == 2
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_cpu_enable_fast_math=false")
    assert scale() == 3
    monkeypatch.undo()


@pytest.mark.parametrize("kind", ["program", "origin"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another"])
def test_damaged_files_are_made_anew(folder: Path, kind: str, damage: str) -> None:
    scale = Scaling()
    assert scale() == 1
    (path,) = files_of(folder, kind)
    good = path.read_bytes()
    flipped = good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :]
    path.write_bytes({"flipped": flipped, "cut": good[:-1], "empty": b"", "another": b"\xff../../elsewhere"}[damage])
    assert [scale(), scale()] == [2, 2]
    # Compilers may write the same program in other bytes.
    assert kind == "program" or path.read_bytes() == good


@pytest.mark.parametrize("kind", ["program", "origin"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_passed_over(folder: Path, kind: str, make: Callable[[Path], None]) -> None:
    """A pipe would be waited for without end."""
    scale = Scaling()
    assert scale() == 1
    (path,) = files_of(folder, kind)
    path.unlink()
    make(path)
    assert [scale(), scale()] == [2, 3]


def test_programs_of_another_user_are_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Scaling()
    assert scale() == 1
    owner = os.getuid() or 12_345
    for path in folder.iterdir():
        os.chown(path, owner, -1)
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert scale() == 2


def test_programs_in_a_folder_that_is_read_only_are_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That their times cannot be set is no reason to compile."""
    scale = Scaling()
    assert scale() == 1

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    assert [scale(), scale()] == [1, 1]


def test_a_program_that_cannot_be_loaded_here_is_made_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Scaling()
    assert scale() == 1

    def fail(*_, **__):
        raise RuntimeError("made for another driver")

    with monkeypatch.context() as patched:
        patched.setattr(programs.serialize_executable, "deserialize_and_load", fail)
        assert scale() == 2
        patched.setattr(programs.serialize_executable, "serialize", fail)
        assert scale(5.0) == 3
    assert len(files_of(folder, "program")) == 1


def test_a_folder_that_cannot_be_written_to_keeps_nothing(folder: Path) -> None:
    folder.write_text("a file")
    scale = Scaling()
    assert [scale(), scale()] == [1, 2]


def test_what_jaxs_own_cache_gave_is_not_written_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factor, found = 3.0 + os.getpid() / 2**22, []
    with setting("jax_persistent_cache_min_compile_time_secs", 0.0):
        for _ in range(2):
            lowered = jax.jit(lambda x: factor * x).lower(jnp.zeros(3))
            found.append(programs._compile(lowered, {})[1])
    assert found == [True, False]
    monkeypatch.setattr(programs, "_compile", lambda lowered, options: (lowered.compile(), False))
    scale = Scaling()
    assert [scale(), scale()] == [1, 2]
    assert not folder.exists()


def test_lapack_is_not_called_by_a_program_from_a_file(folder: Path) -> None:
    """Nothing would have told XLA where its functions are: on a CPU such a program ends the process."""
    x = jnp.eye(3)
    for _ in range(2):
        compiled = programs.compiled(lambda: jax.jit(jnp.linalg.qr).lower(x), "qr", x, MESH, {})
        np.testing.assert_allclose(abs(compiled(x)[0]), np.eye(3), atol=1e-6)
    assert not folder.exists()


def test_libraries_come_before_a_program_that_calls_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"jax", "jaxlib", "numpy"} <= set(programs._libraries())
    assert not {"os", "jgolf", "jgolf.programs", "__main__"} & set(programs._libraries())
    (folder.parent / "registers_kernels.py").write_text("")
    monkeypatch.syspath_prepend(folder.parent)
    x = jnp.zeros(3)
    path = folder / f"{'0' * 64}.program"
    assert programs._keep(jax.jit(jnp.sin).lower(x).compile(), path, ["no_such_library", "registers_kernels"])
    assert programs._load(path, MESH)(x).shape == (3,)
    assert sys.modules.pop("registers_kernels")


def test_the_oldest_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = Scaling()
    scale(3.0)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    (folder / "of others").mkdir()
    os.utime(folder / "of others", (0, 0))
    (folder / ".killed.1.tmp").write_bytes(bytes(10_000_000))
    os.utime(folder / ".killed.1.tmp", (2, 2))
    (size,) = (path.stat().st_size for path in files_of(folder, "program"))
    scale(4.0)
    assert len(files_of(folder, "program")) == 2
    for number, path in enumerate(sorted(folder.glob("*.*"), key=lambda path: path.stat().st_mtime)):
        os.utime(path, (number + 10, number + 10))
    assert scale(3.0) == 2  # used now, so 4's is the oldest
    monkeypatch.setattr(programs, "LARGEST_FOLDER", int(2.5 * size))
    assert scale(5.0) == 3
    assert sum(path.stat().st_size for path in folder.glob("*.*")) <= 2.5 * size + 200
    assert [scale(3.0), scale(5.0), scale(4.0)] == [3, 3, 4]


def test_where_the_cache_is_off_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_setting(name: str, value: object) -> Path | None:
        with setting(name, value):
            return programs.folder()

    assert with_setting("jax_compilation_cache_dir", "/somewhere") == Path("/somewhere/programs")
    assert with_setting("jax_compilation_cache_dir", None) is None
    assert with_setting("jax_compilation_cache_dir", "gs://bucket/programs") is None
    assert with_setting("jax_enable_compilation_cache", False) is None
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert programs.folder() is None


def test_the_source_is_what_lies_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.jgolf, "__file__", str(tmp_path / "__init__.py"))
    digests = []
    for name, text in (("a.py", "1"), ("b/c.py", "2"), ("b/c.py", "3"), ("b/note.txt", "4")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        digests.append(programs._source.__wrapped__())
    assert len(set(digests)) == 3
    assert digests[2] == digests[3]


@pytest.fixture
def config() -> Config:
    """Of a step that no other test compiles: what JAX's cache has of one is not kept."""
    train = dataclasses.replace(RECIPE.train, seq_len=16, batch_tokens=32, num_ranks=1, steps=1000 + os.getpid())
    muon = dataclasses.replace(RECIPE.optim.muon, newton_schulz_steps=1)
    return dataclasses.replace(RECIPE, model=NANO, train=train, optim=dataclasses.replace(RECIPE.optim, muon=muon))


def batch_of(config: Config, mesh: Mesh) -> Batch:
    return jax.device_put(random_batch(config), NamedSharding(mesh, P(None, AXIS)))


def test_the_step_reads_nothing_but_what_its_origin_tells(config: Config) -> None:
    """Without the settings that its origin leaves out the text is the same."""
    mesh = one_device()
    state, batch = abstract_state(config, replicated(mesh)), batch_of(config, mesh)
    bare = dataclasses.replace(config, name=None, data=None, evaluate=None)
    assert lower_step(config, mesh, state, batch).as_text() == lower_step(bare, mesh, state, batch).as_text()


def test_a_step_from_a_file_trains_alike_to_the_bit(
    folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh, ends = one_device(), []
    batch = batch_of(config, mesh)
    for _ in range(2):
        state = random_state(config, mesh)
        step = CompiledStep(config, mesh, abstract_state(config, replicated(mesh)), batch)
        for _ in range(2):
            state, report = step(state, batch)
        ends.append(jax.device_get((state, report)))
        assert step.compiled.memory_analysis().temp_size_in_bytes > 0  # what `jgolf bench` asks of it
        monkeypatch.setattr("jgolf.train.mesh.train_step", None)  # the second one is not traced
    jax.tree.map(np.testing.assert_array_equal, *ends)
