"""`jgolf compress` and `jgolf decompress`: files by a trained model, without loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich import box
from rich.table import Table

from jgolf import compiling
from jgolf.compress.codec import Codec
from jgolf.compress.container import MOST_CONTEXT, MOST_STREAMS, Reader
from jgolf.compress.report import Report
from jgolf.config import Average
from jgolf.data.text_baseline import compressors
from jgolf.errors import JgolfError
from jgolf.files import atomic_write
from jgolf.load import load_model
from jgolf.options import PathText
from jgolf.progress import byte_progress, counted, plain_console
from jgolf.verbs.scoring import tokenizer_of

SUFFIX = ".jgz"


def compress(
    sources: tyro.conf.Positional[tuple[Path, ...]],
    model: PathText,
    out: Path | None = None,
    streams: int = 0,
    context: int = 0,
    against: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    tokenizer: Path | None = None,
    config: PathText | None = None,
    average: Average | None = None,
) -> None:
    """Compress files by a model. Any file will do; jgolf decompress gives back the same bytes.

    The same model decompresses them, on the same kind of device, with the same versions: where its numbers would
    differ in a last bit, it refuses. Example: jgolf compress notes.txt --model runs/demo/artifact/model.jgolf

    Args:
      sources: What to compress; FILE.jgz is written beside FILE, which stays.
      model: A run directory, a .jgolf artifact, .safetensors, or a PyTorch checkpoint (.pt) or artifact (.ptz).
      out: The file to write, or a folder for the files.
      streams: Parts of a text that are read side by side, each from a start without context; fewer take longer and make
        the file smaller. 0 for one for each context of tokens, up to 512.
      context: Tokens that a prediction sees at most; 0 for as many as the model was trained on.
      against: Show what xz, zstd and, where it is installed, brotli make of the same files at their strongest.
      overwrite: Replace files that exist.
      tokenizer: Its file; the run's own by default, also of a run's artifact.
      config: For PyTorch files, what their tensors do not tell.
      average: For a run, the weights to use; those that it exports by default.
    """
    for option, value, most in (("--streams", streams, MOST_STREAMS), ("--context", context, MOST_CONTEXT)):
        if not 0 <= value <= most:
            raise JgolfError(f"{option} {value}: expected from 0 to {most}")
    targets = _targets(sources, [source.name + SUFFIX for source in sources], out, overwrite)
    compiling.keep_programs()
    codec = _codec(model, tokenizer, config, average)
    for source, target in zip(sources, targets, strict=True):
        size = source.stat().st_size
        with byte_progress(f"compressing {source}", size) as advance, source.open("rb") as file:
            with atomic_write(target) as compressed:
                report = codec.compress(file, size, compressed, source.name, streams, context, advance)
            print(f"{target}: {_told(report)}")
            if against:
                _print_others(report, source)


def decompress(
    sources: tyro.conf.Positional[tuple[Path, ...]],
    model: PathText | None = None,
    out: Path | None = None,
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    tokenizer: Path | None = None,
    config: PathText | None = None,
    average: Average | None = None,
) -> None:
    """Give back files that jgolf compress made smaller, under their own names.

    Nothing is written but what was compressed, byte for byte. Example: jgolf decompress notes.txt.jgz

    Args:
      sources: Compressed files.
      model: The model that compressed them; by default the one that they name.
      out: The file to write, or a folder for the files.
      overwrite: Replace files that exist.
      tokenizer: Its file; the run's own by default, also of a run's artifact.
      config: For PyTorch files, what their tensors do not tell.
      average: For a run, the weights to use; those that it exports by default.
    """
    headers = []
    for source in _checked(sources):
        with source.open("rb") as file:
            headers.append(Reader(file, str(source)).header)
    names = [header.name for header in headers]
    if out is None or out.is_dir() or len(sources) > 1:
        for source, name in zip(sources, names, strict=True):
            if Path(name).name != name or "\0" in name:
                raise JgolfError(f"{source}: its name is {name!r}, which is no file's in one folder: give --out FILE")
    targets = _targets(sources, names, out, overwrite)
    compiling.keep_programs()
    codecs: dict[str, Codec] = {}
    for source, target, header in zip(sources, targets, headers, strict=True):
        wanted = model or header.model_path
        if wanted not in codecs:
            try:
                codecs = {wanted: _codec(wanted, tokenizer, config, average)}
            except JgolfError as error:
                if model:
                    raise
                raise JgolfError(f"{source}: its model, {header.model_name}, cannot be used: {error}") from None
        with byte_progress(f"decompressing {source}", header.size) as advance, source.open("rb") as file:
            with atomic_write(target) as original:
                report = codecs[wanted].decompress(Reader(file, str(source)), original, str(source), advance)
            print(f"{target}: {report.size:,} bytes, {_rate(report)}")


def _codec(model: str, tokenizer: Path | None, config: str | None, average: Average | None) -> Codec:
    loaded = load_model(model, config, average)
    return Codec(loaded.config, loaded.params, tokenizer_of(loaded, tokenizer), model)


def _checked(sources: Iterable[Path]) -> list[Path]:
    """The paths, if all of them are files.

    Raises:
      JgolfError: there are none, or one is not a file that can be read.
    """
    found = list(sources)
    if not found:
        raise JgolfError("no files: name one or more")
    for path in found:
        if path.exists() and not path.is_file() and not path.is_dir():  # opening a pipe may take for ever
            raise JgolfError(f"{path}: not a file that has an end, so it cannot be read as one")
        try:
            path.open("rb").close()
        except OSError as error:
            raise JgolfError(f"{path}: cannot be read: {error.strerror or error}") from None
    return found


def _targets(sources: Sequence[Path], names: Sequence[str], out: Path | None, overwrite: bool) -> list[Path]:
    """Where each file goes: beside its source, into the folder `out`, or to the file `out`.

    Raises:
      JgolfError: a source cannot be read, a target is there already, or two are the same.
    """
    sources = _checked(sources)
    if out is None:
        targets = [source.with_name(name) for source, name in zip(sources, names, strict=True)]
    elif out.is_dir() or len(sources) > 1:
        targets = [out / name for name in names]
    else:
        targets = [out]
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        if target.is_dir() or (target.exists() and (not overwrite or target.samefile(source))):
            raise JgolfError(f"{target}: exists already; choose another place with --out, or add --overwrite")
        if target in targets[:number]:
            raise JgolfError(f"{target}: two of the files would be written there; do them one by one, with --out FILE")
    return targets


def _told(report: Report) -> str:
    """What came of a file, in words."""
    lines = [f"{report.size:,} → {report.compressed:,} bytes{_bits(report)}, {_rate(report)}"]
    if report.tokens:
        lines.append(
            f"  {report.tokens:,} tokens: {report.coded:,} bytes, by the model's probabilities {report.predicted:,.0f} "
            f"({report.overhead:+.2%}); what they do not hold: {report.rest:,} bytes"
        )
        near, far = report.bits
        near_start = f"{report.early[0]:,} tokens near their starts took {near:.3f} bits each"
        others = "" if math.isnan(far) else f", the others {far:.3f}"
        lines.append(f"  {counted(report.streams, 'stream')}, each from a start without context: {near_start}{others}")
    if report.without_model:
        lines.append(f"  {report.without_model:,} bytes without the model: LZMA makes them smaller")
    return "\n".join(lines)


def _bits(report: Report) -> str:
    return f", {report.bits_per_byte:.4f} bits per byte" if report.size else ""


def _rate(report: Report) -> str:
    return f"{report.seconds:.1f} s, {report.bytes_per_s:,.0f} bytes a second"


def _print_others(report: Report, source: Path) -> None:
    """A table of what others make of the same file."""
    data = source.read_bytes()
    table = Table(box=box.SIMPLE)
    for name in ("", "bytes", "bits per byte"):
        table.add_column(name, justify="right" if name else "left")
    others = {name: squeeze for name, squeeze in compressors().items() if name != "zlib -9"}
    sizes = {"the model": report.compressed} | {name: len(squeeze(data)) for name, squeeze in others.items()}
    for name, size in sizes.items():
        table.add_row(name, f"{size:,}", f"{8 * size / len(data):.4f}" if data else "")
    plain_console().print(table)
