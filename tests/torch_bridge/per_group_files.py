"""Writes artifacts as the script of pull request #1855 does, by PyTorch, brotli and the program lrzip."""

from __future__ import annotations

import io
import struct
import subprocess

import brotli
import numpy as np
import torch

from jgolf.config import LqerConfig
from jgolf.quantize.export import quantize, rows_of
from jgolf.torch_bridge.names import torch_name
from tests.conftest import params_of
from tests.pr1855 import FOLDER, MODEL, RECORD

ROLES = ("attn.c_k", "attn.c_q", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj")
ORDERED = ("tok_emb", "attn.c_q", "mlp.fc")


def stored_model(**how):
    """The model of the golden numbers in the record's forms, quantized without text; kernels too small for them not."""
    with np.load(FOLDER / "model.npz") as file:
        params = {path: np.asarray(value) for path, value in params_of(file, "params/").items()}
    config = {"rank": 4, "group": 32, "asymmetric": True} | how
    settings = RECORD.quantize.__class__(
        **{**vars(RECORD.quantize), "small_size": 32 * 32, "gptq": False, "lqer": LqerConfig(**config)}
    )
    return quantize(params, settings)


def state_of(stored):
    """What the script keeps of each tensor, by name, and its form."""
    tensors, marks = {}, {}
    for path, tensor in stored.items():
        name = torch_name(path)
        if tensor.scales is None:
            tensors[name], marks[name] = rows_of(path, tensor.values), "passthrough (float16)"
        elif name.endswith("attn_gate_w"):
            tensors[name + ".gq"], tensors[name + ".gs"] = tensor.values, tensor.scales
            marks[name] = "gate_int8_row"
        else:
            tensors[name + ".q"], tensors[name + ".scale"] = tensor.values, tensor.scales
            marks[name] = f"gptq ({tensor.form})"
            if tensor.correction is not None:
                left, right = tensor.factors
                asymmetric = left.scales.size == 1
                marks[name] += "+lqer_asym" if asymmetric else "+lqer"
                for letter, factor in (("A", left), ("B", right)):
                    end = "_a" if asymmetric else ""
                    scales = factor.scales.reshape(()) if asymmetric and letter == "A" else factor.scales
                    tensors[f"{name}.lq{letter}{end}"], tensors[f"{name}.lq{letter}s{end}"] = factor.levels, scales
    return tensors, marks


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def as_torch(arrays):
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def chain(matrix):
    """Rows by a greedy walk from row 0 to the nearest one that is left, by sums of magnitudes of differences."""
    left, order = list(range(1, len(matrix))), [0]
    while left:
        distances = np.abs(matrix[left].astype(int) - matrix[order[-1]]).sum(axis=1)
        order.append(left.pop(int(np.argmin(distances))))
    return order


def lrzip(content, folder):
    if not content:
        return b""
    (folder / "raw").write_bytes(content)
    command = ["lrzip", "-Q", "-z", "-L", "9", "-f", "-o", str(folder / "packed"), str(folder / "raw")]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "packed").read_bytes()


def packed(stored, folder, pack=lrzip):
    """The whole file."""
    tensors, marks = state_of(stored)
    streams, orders, shapes = [], [], {}
    for role in ("tok_emb", *ROLES):
        layers = range(MODEL.num_layers) if role != "tok_emb" else [0]
        names = [f"{role}.weight" if role == "tok_emb" else f"blocks.{layer}.{role}.weight" for layer in layers]
        content = b""
        for name in names:
            if name + ".q" in tensors:
                matrix = tensors.pop(name + ".q")
                shapes[name + ".q"] = tuple(matrix.shape)
                if role in ORDERED:
                    orders += (order := chain(matrix))
                    matrix = matrix[order]
                content += matrix.T.tobytes()
        streams.append(pack(content, folder))
    rest = {"r": as_torch(tensors), "m": marks, "s": shapes}
    streams += [brotli.compress(saved(rest), quality=5), brotli.compress(np.array(orders, "<u2").tobytes())]
    return b"PGRP" + struct.pack(f"<{1 + len(streams)}I", len(streams), *map(len, streams)) + b"".join(streams)


def changed(data, **values):
    """The file with other lengths, streams or entries of what torch.save wrote."""
    count = struct.unpack_from("<I", data, 4)[0]
    lengths = struct.unpack_from(f"<{count}I", data, 8)
    ends = 8 + 4 * count + np.cumsum(lengths)
    streams = [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    for number, stream in values.pop("streams", {}).items():
        streams[number] = stream
    if values:
        content = torch.load(io.BytesIO(brotli.decompress(streams[-2])), weights_only=True)
        for key, entries in values.items():
            content[key] |= entries
        streams[-2] = brotli.compress(saved(content), quality=1)
    return b"PGRP" + struct.pack(f"<{1 + count}I", count, *map(len, streams)) + b"".join(streams)
