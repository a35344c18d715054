"""State dicts of PyTorch, `final_model.pt`, read without running any code in them."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jgolf import files
from jgolf.errors import ArtifactError
from jgolf.torch_bridge.torch_extra import import_torch

STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict")


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
    problems: list[str] = []
    arrays = {str(name): to_numpy(str(name), value, problems) for name, value in state.items()}
    problems += [f"{name}: found int8, expected floats" for name, array in arrays.items() if _is_int8(array)]
    if problems:
        raise ArtifactError("\n  ".join([f"{path}: not a state dict of floating-point tensors:", *problems]))
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
      ArtifactError: `data` is damaged, or asks for anything else to be built or run.
    """
    torch = import_torch(f"reading {source}")
    try:
        if zipfile.is_zipfile(io.BytesIO(data)) and (record := zipfile.ZipFile(io.BytesIO(data)).testzip()):
            raise ArtifactError(f"{source}: damaged: {record} in it does not match its checksum")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except ArtifactError:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"{source}: refused: it holds something other than tensors in plain containers, "
            f"or is damaged ({_shortened(reason)}); save the model's state_dict() instead"
        ) from None
    except Exception as error:  # a damaged file fails in any of PyTorch's readers
        raise ArtifactError(
            f"{source}: not a file that torch.save wrote, or damaged or cut off "
            f"({type(error).__name__}: {_shortened(str(error))})"
        ) from None


def to_numpy(name: str, value: Any, problems: list[str]) -> np.ndarray | None:
    """A floating-point or int8 tensor as an array, bfloat16 as float32; adds to `problems` what is none."""
    torch = import_torch("reading a tensor")
    if not isinstance(value, torch.Tensor):
        problems.append(f"{name}: found {describe(value)}, expected a tensor")
        return None
    stored = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not stored or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        problems.append(f"{name}: found a tensor of {list(value.shape)} without all its values, expected a dense one")
        return None
    if value.dtype == torch.bfloat16:
        value = value.float()
    if value.dtype not in (torch.float16, torch.float32, torch.float64, torch.int8):
        problems.append(f"{name}: found {value.dtype}, expected a floating-point type (int8 in an artifact)")
        return None
    return value.detach().contiguous().numpy()


def bytes_of(path: str | Path) -> bytes:
    """The file's content; ArtifactError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from None


def _is_int8(array: np.ndarray | None) -> bool:
    return array is not None and array.dtype == np.int8


def describe(value: Any) -> str:
    """What a value read from a file is, for an error."""
    return f"{type(value).__name__} with {len(value)} entries" if isinstance(value, Mapping) else type(value).__name__


def _shortened(text: str, length: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
