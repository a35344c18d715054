"""Compiled programs kept whole: a process that would compile the same again loads it, and neither traces nor lowers.

JAX's compilation cache knows a program by its text, which has to be traced and lowered first. Here it is known by its
origin, too, all that it is made from: settings, shapes and places of its arguments, the compiler's options, devices,
JAX's own settings, the source of this package, and the versions of all others. Another origin has its text made, and
where that is known already, is noted beside it. What cannot be read is made anew. The files lie in a folder of their
own in that of JAX's cache; where that cache is off, nothing is kept.

Loading a program runs what is in its file, so only this user's own files, and root's, are loaded.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import os
import pickle
import platform
import re
import stat
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
from jax.experimental import serialize_executable
from jax.sharding import Mesh

import jgolf
from jgolf import files
from jgolf.compiling import Options
from jgolf.errors import JgolfError

FOLDER = "programs"
LARGEST_FOLDER = 2_000_000_000
"""Bytes of all files; the ones that have not been used for the longest time go first."""
_OF_CACHES = ("jax_compilation_cache", "jax_persistent_cache")
_DIGEST_BYTES = hashlib.sha256().digest_size


def compiled(
    lower: Callable[[], jax.stages.Lowered],
    made_from: Any,
    arguments: Any,
    mesh: Mesh,
    options: Options,
) -> jax.stages.Compiled:
    """The compiled program, from an earlier process where one has left it.

    Args:
      lower: traces and lowers it for `arguments`.
      made_from: all that the tracing reads besides the arguments, in values whose `repr` tells all of them: numbers,
        strings, tuples and data classes of such.
      arguments: arrays, or shapes with shardings.
      mesh: the devices it is for.
      options: the compiler's.
    """
    where = folder()
    if where is None:
        return _lowered(lower).compile(compiler_options=dict(options))
    target = (sorted(options.items()), _devices(mesh), _jax_settings(), _installed())
    origin = where / f"{_digest(made_from, _shapes(arguments), _source(), target)}.origin"
    program = _load(where / _noted(origin), mesh)
    if program is not None:
        return program
    lowered = _lowered(lower)
    text = lowered.as_text()
    calls = "stablehlo.custom_call" in text
    if calls and mesh.devices.flat[0].platform == "cpu":  # LAPACK, whose functions JAX looks up while it lowers
        return lowered.compile(compiler_options=dict(options))
    name = f"{_digest(text, str(lowered.in_tree), str(lowered.out_tree), target)}.program"
    program = _load(where / name, mesh)
    if program is None:
        program, is_new = _compile(lowered, options)
        # What JAX's cache gave, XLA may write in a form that does not run.
        if not is_new or not _keep(program, where / name, _libraries() if calls else []):
            return program
    with contextlib.suppress(JgolfError):
        files.write_text(origin, name)
    return program


def folder() -> Path | None:
    """Where programs are kept; None where they are not.

    Several processes keep none: they compile together, and would wait for one that loads.
    """
    of_jax = jax.config.jax_compilation_cache_dir
    if not of_jax or "://" in of_jax or not jax.config.jax_enable_compilation_cache or jax.process_count() > 1:
        return None
    return Path(of_jax) / FOLDER


def _lowered(lower: Callable[[], jax.stages.Lowered]) -> jax.stages.Lowered:
    """Without the garbage collector: tracing makes millions of objects that stay, and searching them takes a fifth."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return lower()
    finally:
        if was_on:
            gc.enable()


def _compile(lowered: jax.stages.Lowered, options: Options) -> tuple[jax.stages.Compiled, bool]:
    """The program, and whether it has been compiled here rather than found in JAX's cache."""
    thread, hits = threading.get_ident(), []

    def listen(event: str, **_: str | int) -> None:
        if event == "/jax/compilation_cache/cache_hits" and threading.get_ident() == thread:
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        return lowered.compile(compiler_options=dict(options)), not hits
    finally:
        jax.monitoring.unregister_event_listener(listen)


def _libraries() -> list[str]:
    """Modules of other packages that are loaded: kernels are registered with XLA where such a module is imported."""
    ours = {*sys.stdlib_module_names, *sys.builtin_module_names, "__main__", jgolf.__name__}
    return sorted(name for name in list(sys.modules) if name.partition(".")[0] not in ours)


# --- what a program is known by --------------------------------------------------------------


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _shapes(arguments: Any) -> tuple:
    """Structure, shapes, types and places of arrays."""
    leaves, structure = jax.tree.flatten(arguments)
    of_leaf = [(leaf.shape, str(leaf.dtype), getattr(leaf, "weak_type", False), str(leaf.sharding)) for leaf in leaves]
    return str(structure), of_leaf


def _devices(mesh: Mesh) -> tuple:
    """The devices in order, what drives them, and for a CPU, what it can do."""
    devices = [(device.id, device.platform, device.device_kind) for device in mesh.devices.flat]
    client, features = mesh.devices.flat[0].client, []
    if client.platform == "cpu":
        with contextlib.suppress(OSError):
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            features = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return str(mesh), devices, jax.device_count(), client.platform_version, platform.machine(), features


def _jax_settings() -> tuple:
    """Settings of JAX and of XLA, those of the caches left out."""
    values = jax.config.values
    names = sorted(name for name in values if not name.startswith(_OF_CACHES))
    of_jax = [(name, str(getattr(jax.config, name, values[name]))) for name in names]  # as it is within contexts
    return of_jax, sorted((name, value) for name, value in os.environ.items() if name.startswith(("XLA_", "LIBTPU_")))


@cache
def _source() -> str:
    """A digest of this package's source."""
    root, source = Path(jgolf.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        source.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return source.hexdigest()


@cache
def _installed() -> tuple:
    """Python, and every package with its version."""
    return sys.version, sorted({found.name for entry in sys.path for found in Path(entry or ".").glob("*.dist-info")})


# --- files -----------------------------------------------------------------------------------


def _noted(origin: Path) -> str:
    """The name of the program that came from there; one that no file has where none is noted."""
    try:
        name = _read(origin).decode()
    except (OSError, ValueError):
        return "none"
    _mark_used(origin)
    return name if re.fullmatch(r"[0-9a-f]{64}\.program", name) else "none"


def _load(path: Path, mesh: Mesh) -> jax.stages.Compiled | None:
    """The program in a file; None where there is none, or none that can be used."""
    try:
        data = memoryview(_read(path))
        digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            return None
        devices = list(mesh.devices.flat)
        libraries, serialized = pickle.loads(content)
        for name in libraries:
            with contextlib.suppress(ImportError):  # of another program that kept this one
                importlib.import_module(name)
        program = serialize_executable.deserialize_and_load(
            *serialized, backend=devices[0].client, execution_devices=devices
        )
    except Exception:  # of any kind, JAX's and the compiler's own: it is compiled instead
        return None
    _mark_used(path)
    return program


def _read(path: Path) -> bytes:
    """What a file holds; OSError where it is somebody else's, or none, but a pipe, which nobody may ever write to."""
    status, own = path.stat(), os.getuid() if hasattr(os, "getuid") else 0
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, own):
        raise FileNotFoundError(path)
    return path.read_bytes()


def _mark_used(path: Path) -> None:
    with contextlib.suppress(OSError):  # in a folder that is read only: good to read all the same
        os.utime(path)


def _keep(program: jax.stages.Compiled, path: Path, libraries: list[str]) -> bool:
    """Writes a program, with what is to be imported first, and makes room; whether it could be written."""
    try:
        content = pickle.dumps((libraries, serialize_executable.serialize(program)))
    except Exception:  # likewise: it is compiled again next time
        return False
    try:
        with files.atomic_write(path) as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)
        _make_room(path.parent)
    except (JgolfError, OSError):
        return False
    return True


def _make_room(where: Path) -> None:
    """Removes what was used longest ago, what killed processes left behind included."""
    found = []
    for path in where.iterdir():
        with contextlib.suppress(OSError):  # another process was quicker
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode):  # which is nobody's program
                found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= LARGEST_FOLDER:
            return
        with contextlib.suppress(OSError):  # gone already, or another user's
            path.unlink()
        total -= size
