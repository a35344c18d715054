"""What takes the room in an artifact, and how to get back under the limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table

from jgolf import rules
from jgolf.artifact.container import CodecName, pack
from jgolf.config import QuantizeConfig
from jgolf.quantize.export import quantize
from jgolf.quantize.stored import StoredTensor, dequantize

LIMIT_BYTES = 16_000_000
SMALLER_FORM = {"fp32": "fp16", "fp16": "int8", "int8": "int7", "int7": "int6", "int6": "int5", "int5": "int4"}


@dataclass(frozen=True)
class KindSize:
    """The tensors of one kind.

    Attributes:
      kind: as the parameter rules call it.
      forms: their storage forms.
      values: number of parameters.
      raw_bytes: levels at their form's bits, floats at their width, and the scales.
      entropy_bytes: what a code for each tensor alone, blind to rows and columns, could reach: the sum
        of the zero-order entropies of levels, and of each byte of floats and scales.
      packed_bytes: their share of the artifact.
    """

    kind: str
    forms: tuple[str, ...]
    values: int
    raw_bytes: int
    entropy_bytes: float
    packed_bytes: int


@dataclass(frozen=True)
class SizeReport:
    """Bytes of an artifact and the code that scores it, against the challenge's limit."""

    kinds: tuple[KindSize, ...]
    artifact_bytes: int
    code_bytes: int
    limit_bytes: int = LIMIT_BYTES

    @property
    def total_bytes(self) -> int:
        """What the challenge counts."""
        return self.artifact_bytes + self.code_bytes

    @property
    def over_bytes(self) -> int:
        """Bytes past the limit; at most 0 if it fits."""
        return self.total_bytes - self.limit_bytes


@dataclass(frozen=True)
class SmallerForm:
    """One change of a setting that makes the artifact smaller.

    Attributes:
      setting: field of QuantizeConfig.
      old, new: its storage forms.
      saved_bytes: by packing the changed tensors both ways.
      damage: relative squared error of each changed tensor times its number of values, summed.
    """

    setting: str
    old: str
    new: str
    saved_bytes: int
    damage: float


def measure(
    stored: Mapping[str, StoredTensor], artifact_bytes: int, code_bytes: int, codec: CodecName = "zstd"
) -> SizeReport:
    """Sizes by kind of tensor.

    Each kind is packed alone; the artifact's bytes, header included, are shared out in that proportion.
    """
    by_kind: dict[str, dict[str, StoredTensor]] = {}
    for path, tensor in stored.items():
        by_kind.setdefault(rules.rule_of(path).kind, {})[path] = tensor
    alone = {kind: _packed_bytes(tensors, codec) for kind, tensors in by_kind.items()}
    kinds = [
        KindSize(
            kind=kind,
            forms=tuple(sorted({tensor.form for tensor in tensors.values()})),
            values=sum(tensor.values.size for tensor in tensors.values()),
            raw_bytes=sum(map(raw_bytes, tensors.values())),
            entropy_bytes=sum(map(entropy_bytes, tensors.values())),
            packed_bytes=round(artifact_bytes * alone[kind] / sum(alone.values())),
        )
        for kind, tensors in by_kind.items()
    ]
    kinds.sort(key=lambda size: -size.packed_bytes)
    return SizeReport(tuple(kinds), artifact_bytes, code_bytes)


def raw_bytes(tensor: StoredTensor) -> int:
    """Bytes of a tensor with its bits laid end to end, its correction's too."""
    if tensor.scales is None:
        return tensor.values.nbytes
    parts = [(tensor.values, tensor.bits, tensor.scales), *((f.levels, f.bits, f.scales) for f in tensor.factors)]
    return sum(-(-levels.size * bits // 8) + scales.nbytes for levels, bits, scales in parts)


def entropy_bytes(tensor: StoredTensor) -> float:
    """Zero-order entropy of a tensor: of its levels, its correction's, and of each byte of scales or floats."""
    if tensor.scales is None:
        return _plane_entropy_bytes(tensor.values)
    parts = [(tensor.values, tensor.scales), *((factor.levels, factor.scales) for factor in tensor.factors)]
    return sum(_zero_order_bytes(levels.view(np.uint8)) + _plane_entropy_bytes(scales) for levels, scales in parts)


def smaller_forms(
    stored: Mapping[str, StoredTensor], config: QuantizeConfig, codec: CodecName = "zstd"
) -> list[SmallerForm]:
    """What each setting saves, and what it costs, if it goes down to the next smaller form.

    Args:
      stored: an artifact's tensors.
      config: the settings that made them.
      codec: how they are coded.
    """
    found = []
    for setting in ("mlp", "attention", "embedding", "table", "small", "control"):
        old = getattr(config, setting)
        new = SMALLER_FORM.get(old)
        if new is None or (setting == "control" and new != "fp16"):
            continue
        changed = dataclasses.replace(config, **{setting: new})
        before = {p: t for p, t in stored.items() if rules.storage_form(p, t.shape, changed) != t.form}
        if before:
            weights = dequantize(before)
            after = quantize(weights, changed)
            saved_bytes = _packed_bytes(before, codec) - _packed_bytes(after, codec)
            damage = sum(_damage(weights[path], after[path].dequantize()) for path in before)
            found.append(SmallerForm(setting, old, new, saved_bytes, damage))
    return found


def cheapest_way_back(changes: Iterable[SmallerForm], over_bytes: int) -> SmallerForm | None:
    """The change with the least damage that saves `over_bytes`; None if no single one does."""
    enough = [change for change in changes if change.saved_bytes >= over_bytes]
    return min(enough, key=lambda change: change.damage, default=None)


def size_table(report: SizeReport) -> Table:
    """The report for a terminal."""
    table = Table(title="Size in bytes, by kind of tensor", box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for name in ("kind", "form", "values", "entropy", "packed", "bits", "share"):
        table.add_column(name, justify="left" if name in ("kind", "form") else "right", no_wrap=True)
    for size in report.kinds:
        table.add_row(
            size.kind,
            " ".join(size.forms) if len(size.forms) < 3 else f"{size.forms[0]}–{size.forms[-1]}",
            f"{size.values:,}",
            f"{size.entropy_bytes:,.0f}",
            f"{size.packed_bytes:,}",
            f"{8 * size.packed_bytes / size.values:.3f}",
            f"{size.packed_bytes / report.total_bytes:.1%}",
        )
    table.add_section()
    for name, count in (
        ("artifact", report.artifact_bytes),
        ("code", report.code_bytes),
        ("total", report.total_bytes),
    ):
        table.add_row(name, "", "", "", f"{count:,}", "", f"{count / report.total_bytes:.1%}")
    table.add_row("limit", "", "", "", f"{report.limit_bytes:,}")
    table.add_row("over" if report.over_bytes > 0 else "left", "", "", "", f"{abs(report.over_bytes):,}")
    return table


def advice(changes: Iterable[SmallerForm], over_bytes: int) -> str:
    """In words: the cheapest change that brings an artifact back under the limit, or what each would save."""
    changes = list(changes)
    best = cheapest_way_back(changes, over_bytes)
    if best is not None:
        return (
            f"{over_bytes:,} bytes over the limit; cheapest way back: "
            f"--quantize.{best.setting} {best.new} (now {best.old}) saves about {best.saved_bytes:,} bytes"
        )
    listed = (
        f"  --quantize.{change.setting} {change.new} (now {change.old}): {change.saved_bytes:,} bytes"
        for change in sorted(changes, key=lambda change: -change.saved_bytes)
    )
    return "\n".join([f"{over_bytes:,} bytes over the limit; no single change saves that much:", *listed])


def _packed_bytes(tensors: Mapping[str, StoredTensor], codec: CodecName) -> int:
    """Close to what the highest level of zstd gives, in a tenth of its time."""
    return len(pack(tensors, {}, codec, zstd_level=1))


def _damage(before: np.ndarray, after: np.ndarray) -> float:
    power = float(np.square(before, dtype=np.float64).sum())
    error = float(np.square(after - before, dtype=np.float64).sum())
    return before.size * error / power if power else 0.0


def _zero_order_bytes(symbols: np.ndarray) -> float:
    counts = np.bincount(symbols.ravel())
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def _plane_entropy_bytes(values: np.ndarray) -> float:
    planes = np.ascontiguousarray(values).reshape(-1, 1).view(np.uint8)
    return sum(_zero_order_bytes(plane) for plane in planes.T)
