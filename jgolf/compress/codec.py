"""Files compressed by a model, and decompressed by the same one; what was decompressed is checked before it counts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from typing import BinaryIO

import jax
import jaxlib
import numpy as np

from jgolf import __version__
from jgolf.compress.coding import Advance, Coder, num_streams
from jgolf.compress.container import HASH_BYTES, SEGMENT_BYTES, Header, Reader, Segment, Writer, plausible, squeezed
from jgolf.compress.pieces import Pieces, join, split
from jgolf.compress.rans import Damaged
from jgolf.compress.report import Nats, Report
from jgolf.config import Config
from jgolf.data.tokenizer import Tokenizer
from jgolf.errors import ArtifactError
from jgolf.evaluate.nats import scoring_model
from jgolf.model.cache import cache_bytes
from jgolf.model.functional import Params

CPU_BYTES, GPU_BYTES = 4 << 30, 24 << 30
"""Memory that the caches of all streams may take, unless their number is given."""


class Codec:
    """A model and its tokenizer, to compress files with.

    An `advance` is told of every few more bytes of the original.
    """

    def __init__(self, config: Config, params: Params, tokenizer: Tokenizer, source: str):
        """
        Args:
          config: the model's settings.
          params: its weights, path → float32.
          tokenizer: the one that it was trained with.
          source: where the model is, for headers and messages.
        """
        self._config, self._params, self._tokenizer, self._source = config, params, tokenizer, source
        self._hash = model_hash(config, params, tokenizer)
        self._coder: Coder | None = None

    def compress(
        self,
        source: BinaryIO,
        size: int,
        sink: BinaryIO,
        name: str,
        streams: int = 0,
        context: int = 0,
        advance: Advance = lambda num_bytes: None,
    ) -> Report:
        """Compresses the next bytes of a file.

        Args:
          source: what to read.
          size: how many bytes of it.
          sink: where to write.
          name: of the original.
          streams: that the tokens are cut into; 0 for as many as suit their number and the memory.
          context: most tokens that a prediction sees; 0 for as many as the model was trained on.
          advance: see the class.

        Raises:
          ArtifactError: there are fewer bytes or more, or the model gives no finite probabilities.
        """
        started, context = time.perf_counter(), context or self._config.train.seq_len
        header = Header(size, context, self._hash, name, self._config.name, self._source, machine())
        writer, report, digest = Writer(sink, header), Report(size), hashlib.blake2b(digest_size=HASH_BYTES)
        num_segments = -(-size // SEGMENT_BYTES)
        for number in range(num_segments):
            wanted = (number + 1) * size // num_segments - number * size // num_segments
            data = source.read(wanted)
            if len(data) < wanted:
                raise ArtifactError(f"{name}: ends before its {size:,} bytes: was it changed meanwhile?")
            digest.update(data)
            segment, nats = self._segment(data, streams, context, advance)
            writer.add(segment)
            report.add(segment, nats, context)
        if source.read(1):
            raise ArtifactError(
                f"{name}: goes on after its {size:,} bytes: it was changed meanwhile, or does not tell its size; "
                "compress a copy of it"
            )
        writer.finish(digest.digest())
        report.compressed, report.seconds = writer.size, time.perf_counter() - started
        return report

    def decompress(
        self, reader: Reader, sink: BinaryIO, source: str, advance: Advance = lambda num_bytes: None
    ) -> Report:
        """Decompresses a file.

        Args:
          reader: of the compressed file.
          sink: where to write the original.
          source: what error messages call the file.
          advance: see the class.

        Raises:
          ArtifactError: another model compressed it, this machine computes otherwise than the one that compressed it,
            or what came out is not what went in: then what `sink` got is worth nothing.
        """
        started, header = time.perf_counter(), reader.header
        if header.model != self._hash:
            raise ArtifactError(
                f"{source}: compressed by the model {header.model_name} ({header.model_path}, "
                f"{header.model.hex()[:16]}…), not by {self._source} ({self._hash.hex()[:16]}…): give that model, and "
                "its tokenizer, with --model"
            )
        digest, report = hashlib.blake2b(digest_size=HASH_BYTES), Report(header.size)
        for segment in reader.segments():
            try:
                data = self._original(segment, header, source, advance)
            except Damaged as error:
                raise _not_the_original(source, str(error)) from None
            digest.update(data)
            sink.write(data)
        if reader.original() != digest.digest():
            raise _not_the_original(source, "its hash is another")
        report.seconds = time.perf_counter() - started
        return report

    def _segment(self, data: bytes, streams: int, context: int, advance: Advance) -> tuple[Segment, Nats]:
        """The segment of these bytes, and the information of its tokens, of which there may be none."""
        pieces, plain = split(data, self._tokenizer), squeezed(data)
        num_tokens = len(pieces.tokens)
        share = _Share(len(data), num_tokens, advance)
        if num_tokens and plausible(len(data), num_tokens, len(pieces.rest)):
            wanted = streams or self._suitable_streams(num_tokens, context)
            coder = self._coder_for(min(wanted, num_tokens), context)
            coded, nats = coder.encode(pieces.tokens, share.advance)
            rest = squeezed(pieces.rest)
            if len(coded) + len(rest) < len(plain):
                segment = Segment(len(data), num_tokens, len(pieces.rest), rest, coder.streams, coder.probe, coded)
                return segment, nats
        share.finish()
        return Segment(len(data), 0, len(data), plain), np.zeros((0, 0))

    def _original(self, segment: Segment, header: Header, source: str, advance: Advance) -> bytes:
        """The bytes of a segment."""
        share, rest = _Share(segment.size, segment.num_tokens, advance), segment.rest
        if rest is None:
            raise Damaged("what LZMA compressed is not of its length")
        if not segment.num_tokens:
            share.finish()
            return rest
        coder = self._coder_for(segment.streams, header.context)
        if coder.probe != segment.probe:
            raise ArtifactError(
                f"{source}: compressed on {header.machine}. On this machine, {machine()}, the model's numbers differ "
                "in some last bits, and by others nothing can be decoded: decompress it on a machine like the first, "
                "with the same versions"
            )
        tokens = coder.decode(segment.coded, segment.num_tokens, share.advance)
        return join(Pieces(tokens, rest), segment.size, self._tokenizer)

    def _suitable_streams(self, num_tokens: int, context: int) -> int:
        """For so many tokens. Those of the last coder, where they will do: others take time to compile."""
        room = GPU_BYTES if jax.default_backend() == "gpu" else CPU_BYTES
        most = room // cache_bytes(scoring_model(self._config.model), context)
        suitable = num_streams(num_tokens, context, most)
        last = self._coder.streams if self._coder else 0
        return last if last <= 2 * suitable and suitable <= 2 * last else suitable

    def _coder_for(self, streams: int, context: int) -> Coder:
        """A coder of these shapes; the last one is kept."""
        if self._coder is None or (self._coder.streams, self._coder.context) != (streams, context):
            self._coder = None  # its memory is free before another takes its own
            train = self._config.train
            how = streams, context, train.seq_len, train.documents, self._tokenizer.bos_id
            self._coder = Coder(self._config.model, self._params, *how)
        return self._coder


class _Share:
    """Tells of bytes what it is told of tokens."""

    def __init__(self, size: int, tokens: int, advance: Advance):
        self._size, self._tokens, self._advance = size, max(1, tokens), advance
        self._done = self._told = 0

    def advance(self, tokens: int) -> None:
        """So many more tokens are done."""
        self._done += tokens
        self._tell(self._size * self._done // self._tokens)

    def finish(self) -> None:
        """All are."""
        self._tell(self._size)

    def _tell(self, reached: int) -> None:
        self._advance(reached - self._told)
        self._told = reached


def model_hash(config: Config, params: Params, tokenizer: Tokenizer) -> bytes:
    """A hash of all that tokens and their probabilities depend on, but for the machine."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    settings = [dataclasses.asdict(config.model), config.train.seq_len, config.train.documents, tokenizer.fingerprint]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(params):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(params[path], np.float32))
    return digest.digest()


def machine() -> str:
    """Device and versions, by which the same program may give other numbers."""
    device, versions = jax.devices()[0], f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, jgolf {__version__}"
    return f"{device.platform} {device.device_kind}, {versions}"


def _not_the_original(source: str, found: str) -> ArtifactError:
    return ArtifactError(
        f"{source}: what it decompresses to here is not what was compressed ({found}), so it was not written: "
        f"decompress it on a machine like the first, with the same versions; this one is {machine()}"
    )
