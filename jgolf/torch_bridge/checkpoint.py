"""State dicts of PyTorch, `final_model.pt`, read without running any code in them."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jgolf import files
from jgolf.errors import ArtifactError, first_line
from jgolf.torch_bridge.compressed import SMALL_BYTES, largest_content
from jgolf.torch_bridge.names import listed
from jgolf.torch_bridge.torch_extra import import_torch

STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict")
ZIP_MAGIC = b"PK\x03\x04"
PICKLES_OF_AN_OLD_FILE = 5  # before the values of PyTorch's format of before 1.6
LARGEST_FILE_BYTES = 4 << 30
NAMES_OF_ONE_STORAGE = 4
"""How many times over the tensors of a large file may use its values: tied weights and shared blocks do."""
PLAIN_GLOBALS = re.compile(
    r"collections (OrderedDict|Counter|defaultdict)"
    r"|torch \w+Storage"
    r"|torch\._utils _rebuild_(tensor(_v2)?|parameter(_with_state)?)"
    r"|torch (Size|device|b?float\w+|u?int\d+|bool|complex\d+|per_\w+)"
    r"|torch\.serialization _get_layout"
    r"|(builtins|__builtin__) (set|complex)"
)
"""What a pickle of tensors in plain containers names. PyTorch's own reader takes more, among them types that make
room for as many bytes as a pickle of a few bytes asks for: bytearray, torch.FloatTensor, torch.storage.TypedStorage."""


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, in PyTorch's layout; bfloat16 becomes float32.

    A checkpoint that holds its state dict under "model", "state_dict" or "model_state_dict" is read too.

    Raises:
      ArtifactError: the file is no state dict, is damaged, or would need code to be run.
      MissingExtraError: PyTorch is not installed.
    """
    state = load_safely(bytes_of(path), str(path))
    if isinstance(state, Mapping):
        state = next((state[key] for key in STATE_DICT_KEYS if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping) or not state:
        raise ArtifactError(f"{path}: expected a state dict, name → tensor; found {describe(state)}")
    check_views(state.values(), str(path))
    problems: list[str] = []
    arrays = {name: to_numpy(name, value, problems) for name, value in by_text(state).items()}
    problems += [f"{name}: found int8, expected floats" for name, array in arrays.items() if _is_int8(array)]
    if problems:
        raise ArtifactError(f"{path}: not a state dict of floating-point tensors:\n{listed(problems)}")
    return arrays


def write(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as a state dict, all or nothing."""
    torch = import_torch(f"writing {path}")
    buffer = io.BytesIO()  # torch hides a full disk behind an error of its own
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, buffer)
    files.write_bytes(path, buffer.getvalue())


def load_safely(data: bytes, source: str) -> Any:
    """What `torch.save` wrote, on the CPU; only tensors and plain containers are ever built.

    Raises:
      ArtifactError: `data` is damaged, holds more than its size can, or asks for anything else to be built or run.
    """
    torch = import_torch(f"reading {source}")
    try:
        _check_container(data, source)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except ArtifactError:
        raise
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{source}: refused: it holds something other than tensors in plain containers, "
            f"or is damaged ({_shortened(first_line(error))}); save the model's state_dict() instead"
        ) from None
    except Exception as error:  # a damaged file fails in any of PyTorch's readers
        raise ArtifactError(
            f"{source}: not a file that torch.save wrote, or damaged or cut off "
            f"({type(error).__name__}: {_shortened(str(error))})"
        ) from None


def _check_container(data: bytes, source: str) -> None:
    """Raises ArtifactError for a zip archive or a pickle that PyTorch should not be given.

    Raises:
      ArtifactError: see above. Other exceptions: it is damaged.
    """
    if not data.startswith(ZIP_MAGIC):  # as PyTorch tells the two apart
        _check_globals(io.BytesIO(data), source, PICKLES_OF_AN_OLD_FILE)
        return
    archive = zipfile.ZipFile(io.BytesIO(data))
    size, limit = sum(entry.file_size for entry in archive.infolist()), largest_content(len(data))
    if size > max(limit, len(data)):  # torch.save compresses nothing: its archives hold less than their size
        raise ArtifactError(
            f"{source}: its {len(data):,} bytes claim to hold {size:,}, expected at most {limit:,}; refused"
        )
    if record := archive.testzip():
        raise ArtifactError(f"{source}: damaged: {record} in it does not match its checksum")
    for entry in archive.namelist():
        if entry.endswith(".pkl"):
            _check_globals(io.BytesIO(archive.read(entry)), source, 1)


def _check_globals(file: io.BytesIO, source: str, pickles: int) -> None:
    """Raises UnpicklingError where one of the pickles at the start of a file is damaged or names more than it needs."""
    for _ in range(pickles):
        try:
            named = [argument for opcode, argument, _ in pickletools.genops(file) if opcode.name == "GLOBAL"]
        except ValueError as error:
            raise pickle.UnpicklingError(f"{source}: {error}") from None
        for name in named:
            if not PLAIN_GLOBALS.fullmatch(name):
                raise pickle.UnpicklingError(f"it asks for {name}")


def check_views(tensors: Iterable[Any], source: str, names: int = NAMES_OF_ONE_STORAGE) -> None:
    """Raises ArtifactError where tensors are many names for the same few values: each becomes an array of its own.

    Args:
      tensors: of one file; what is none is passed over, and what lacks values of its own `to_numpy` refuses.
      source: the file, for the message.
      names: how often values may be named, on average.
    """
    torch = import_torch(f"reading {source}")
    storages: dict[int, int] = {}
    needed = count = 0
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and _is_dense(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            needed += _size_bytes(tensor)
            count += 1
    held = sum(storages.values())
    if needed > max(SMALL_BYTES, names * held):
        raise ArtifactError(
            f"{source}: its {count:,} tensors take {needed:,} bytes but share {held:,} that are there; expected "
            f"{'tensors with values of their own' if names == 1 else f'values with at most {names} names'}; refused"
        )


def _is_dense(tensor: Any) -> bool:
    """Whether a tensor has all its values, in the main memory."""
    torch = import_torch("reading a tensor")
    stored = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return stored and _size_bytes(tensor) <= tensor.untyped_storage().nbytes()


def _size_bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size()


def to_numpy(name: str, value: Any, problems: list[str]) -> np.ndarray | None:
    """A floating-point or int8 tensor as an array, bfloat16 as float32; adds to `problems` what is none."""
    torch = import_torch("reading a tensor")
    if not isinstance(value, torch.Tensor):
        problems.append(f"{name}: found {describe(value)}, expected a tensor")
        return None
    if not _is_dense(value):
        problems.append(f"{name}: found a tensor of {list(value.shape)} without all its values, expected a dense one")
        return None
    if value.dtype == torch.bfloat16:
        value = value.float()
    if value.dtype not in (torch.float16, torch.float32, torch.float64, torch.int8):
        problems.append(f"{name}: found {value.dtype}, expected a floating-point type (int8 in an artifact)")
        return None
    return value.detach().contiguous().numpy()


def bytes_of(path: str | Path) -> bytes:
    """The file's content; ArtifactError where it cannot be read, or is too large for any model of the challenge."""
    try:
        size = Path(path).stat().st_size
        if size > LARGEST_FILE_BYTES:
            raise ArtifactError(f"{path}: has {size:,} bytes, expected a model of at most {LARGEST_FILE_BYTES:,}")
        return Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from None


def by_text(values: Mapping[Any, Any]) -> dict[str, Any]:
    """`values` by names; a key that is none is called by its type, for a message."""
    return {name if isinstance(name, str) else f"a {type(name).__name__}": value for name, value in values.items()}


def _is_int8(array: np.ndarray | None) -> bool:
    return array is not None and array.dtype == np.int8


def describe(value: Any) -> str:
    """What a value read from a file is, for an error."""
    return f"{type(value).__name__} with {len(value)} entries" if isinstance(value, Mapping) else type(value).__name__


def _shortened(text: str, length: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
