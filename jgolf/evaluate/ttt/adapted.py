"""Scores documents while low-rank additions, and now and then all weights, learn from what has been scored.

The scheme of the challenge's pull request #1855. Every document of a batch has low-rank additions of its own to the
network's matrices. Its chunks are scored one after the other, and after each, a step of AdamW on that chunk's loss
adapts them to the document; they are dropped when the batch is done, but for the down-projections, with which the next
batch begins. A few times, after the longest documents, all weights are trained by SGD on documents already scored.
So a prediction depends on earlier tokens of its document and on documents scored before, on no later token, and every
token is scored once, before anything learns from it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jgolf.config import AdaptedConfig, HintsConfig, ModelConfig, resolved
from jgolf.config.plan import make_plan
from jgolf.data.text import Text
from jgolf.errors import DataError
from jgolf.evaluate.hints import NONE
from jgolf.evaluate.nats import ScoredTargets, local_mesh, pieces_at_once, scoring_model
from jgolf.evaluate.predictions import Predictions
from jgolf.evaluate.score import UNSCORED, Scored
from jgolf.evaluate.tilt import Tilt, TiltedPredictions
from jgolf.evaluate.ttt import order
from jgolf.evaluate.ttt.adapters import AdapterPrograms, Adapters, FreshDowns, Stream, random_downs
from jgolf.evaluate.ttt.calls import (
    Call,
    Shape,
    calls_of,
    kinds_of_calls,
    padded_widths,
    program_shapes,
    shapes_worth_having,
)
from jgolf.evaluate.ttt.kept import Kept, fingerprint
from jgolf.evaluate.ttt.sgd import Sgd, zeros_like
from jgolf.evaluate.ttt.tally import Tally
from jgolf.evaluate.windows import Windows
from jgolf.model.functional import Params, runs_as_written
from jgolf.watch import Observer, Tell, unobserved, untold

MOST_PENDING = 32
"""Calls whose scores may still be on the devices."""
MOST_COUNTED = 64
"""Batches, or up to twice as many, by which it is estimated how often programs run."""
SPARED_TOKENS, SPARED_TOKENS_AS_WRITTEN = 1 << 23, 1 << 15
"""Forward passes of a token that a program has to spare to be worth compiling: with kernels, and on a CPU without."""


def adapted(
    config: ModelConfig,
    params: Params,
    text: Text,
    seq_len: int,
    settings: AdaptedConfig = AdaptedConfig(),  # noqa: B008
    *,
    mesh: Mesh | None = None,
    tell: Tell = untold,
    resume_file: Path | None = None,
    fresh_downs: FreshDowns | None = None,
    looped: bool = True,
    observe: Observer = unobserved,
    lessons: float = math.inf,
    hints: HintsConfig | None = None,
) -> Scored:
    """Scores every target of a text with test-time training; see the module.

    Args:
      config: the network.
      params: its parameters, which stay as they are.
      text: what to score.
      seq_len: what `settings.context` and `settings.sgd.row_length` are where they are 0.
      settings: how to adapt.
      mesh: devices, which share each batch's documents and change no score; all of this process's by default.
      tell: is told of the targets scored so far.
      resume_file: what an interrupted evaluation goes on from, to the same scores; it is written at the ends of
        batches, every minute at most, and removed at the end. Its size is that of the weights, of a batch's
        down-projections, and 4 bytes a target.
      fresh_downs: makes down-projections; `random_downs` by default.
      looped: see `jgolf.model.functional`.
      observe: see `jgolf.evaluate.score`; the number is that of the call of a program, which scores and then learns. It
        is given, with the batch's place in the queue, "adapters": (chunk, state) after every chunk, too, and of a phase
        after it "tokens": what it trained on, "sgd": the reports of its steps, "weights": those after it.
      lessons: learn from the first so many calls only, to see what the others' lessons change.
      hints: tilt predictions to hints, which a document takes from itself so far and from finished batches. Their
        weights are those after finished batches and the document's finished chunks.

    Raises:
      DataError: there is nothing to score.
      JgolfError: the resume file cannot be used.
    """
    if len(text.tokens) < 2:
        raise DataError(f"the validation tokens are too few: found {len(text.tokens)}, expected at least 2")
    sgd = dataclasses.replace(settings.sgd, row_length=settings.sgd.row_length or seq_len)
    settings = dataclasses.replace(settings, context=settings.context or seq_len, sgd=sgd)
    mesh = mesh or local_mesh()
    config = scoring_model(resolved(config))
    kept = Kept(None)
    if resume_file is not None:
        kept = Kept(resume_file, fingerprint(params, text, config, settings, looped, *((hints,) if hints else ())))
    how = {"fresh_downs": fresh_downs, "looped": looped, "observe": observe, "lessons": lessons, "hints": hints}
    evaluation = _Evaluation(config, params, text, settings, mesh, tell, kept, **how)
    try:
        return evaluation.run()
    finally:
        evaluation.programs.close()


class _Evaluation:
    """One run of `adapted` through the queue."""

    def __init__(self, config, params, text, settings, mesh, tell, kept, fresh_downs, looped, observe, lessons, hints):
        self.settings, self.text, self.kept, self.observe, self.lessons = settings, text, kept, observe, lessons
        self.config, self.looped, self.num_devices = config, looped, mesh.size
        self.whole = NamedSharding(mesh, P())
        self.params: Params = jax.device_put(params, self.whole)
        self.owns_params = False

        self.documents = order.documents_of(text.starts, len(text.tokens))
        self.batches = order.batches_of(self.documents, settings.batch_documents)
        self.queue = order.queue_of(self.documents, self.batches)
        self.phases = order.phases_of(settings, self.documents, self.batches, self.queue)
        self.tilt, asked = None, None
        if hints is not None:
            scoring_order = order.scoring_order(self.documents, self.batches, self.queue)
            self.tilt = Tilt(text.tokens, scoring_order, hints)
            asked = np.maximum(self.tilt.hints, 0).astype(np.uint16)
        self.stream = jax.device_put(Stream(np.asarray(text.tokens, np.uint16), asked), self.whole)
        self.sgd = Sgd(config, settings.sgd, mesh, documents=True, looped=looped) if self.phases else None
        self.sgd_ready = None
        places = min(settings.batch_documents, len(self.documents.start))
        self.shapes, self.calls = self._programs_worth_having(places)
        self.width = max(shape.width for shape in self.shapes)  # of windows predicted again, in few programs
        self.programs = AdapterPrograms(config, settings, mesh, places, looped)
        self.fresh_downs = fresh_downs or random_downs(config, settings, places, looped)

        self.position = self.draws = self.num_calls = 0
        self.downs: dict[str, jax.Array] | None = None
        self.tally, self.seen = Tally(text, tell), 0
        self.pending: deque[tuple[int, Call, jax.Array]] = deque()
        self.earlier_s = self.earlier_compile_s = 0.0

    def run(self) -> Scored:
        """Scores what has not been scored."""
        began_s = time.perf_counter()
        self._load()
        self.programs.prepare(self.calls, self.params, self.stream)
        if self.settings.warm_start and self.downs is None:
            self.downs = self._fresh(self.settings.batch_documents)
        if any(self._num_sgd_chunks(documents) > 1 for documents in self.phases.values()):
            self.sgd_ready = self.programs.in_background(self.sgd.compile, self.params)
        while self.position < len(self.queue):
            self._batch(self.batches[self.queue[self.position]])
            if self.position in self.phases and self.num_calls <= self.lessons:
                self._phase(self.phases[self.position])
            self.position += 1
            if self.position < len(self.queue) and self.kept.is_due:
                self._save(time.perf_counter() - began_s)
        self._take(0)
        self.kept.remove()
        compile_s = self.programs.waited_s + self.earlier_compile_s
        totals = self.tilt and self.tilt.totals(self.tally.nats != UNSCORED)
        return Scored(self.tally.nats, self.seen / self.tally.num_scored, compile_s, self.earlier_s, totals)

    # --- which programs ---------------------------------------------------------------------------

    def _programs_worth_having(self, places: int) -> tuple[list[Shape], list[tuple[Shape, bool]]]:
        """The shapes to run rows in, and the programs, by shape and whether they train, in the order of need."""
        slots, settings = len(make_plan(self.config, self.looped)), self.settings
        each = -(-places // self.num_devices)

        def rows_of(width: int) -> int:
            most = settings.batch_tokens // width
            if runs_as_written(self.config):  # the backward pass keeps the attention scores of every block
                most = min(most, pieces_at_once(self.config, width) // slots)
            times = -(-each // max(1, most))
            return -(-each // times)  # so that a full batch leaves no rest

        def cost(shapes: list[Shape]) -> int:
            return sum(count * self._tokens(*call) for call, count in self._count_calls(shapes).items())

        least = SPARED_TOKENS_AS_WRITTEN if runs_as_written(self.config) else SPARED_TOKENS
        shapes = program_shapes(padded_widths(settings, settings.context), rows_of)
        shapes = shapes_worth_having(shapes, cost, least)
        calls = self._count_calls(shapes)

        def spares(shape: Shape, trains: bool) -> bool:
            """Whether a program has work of its own: one that adapts can also only score."""
            spared = calls[shape, trains] * (self._tokens(shape, True) - self._tokens(shape, False))
            return trains or not calls[shape, True] or spared > least

        return shapes, [call for call in calls if spares(*call)]

    def _tokens(self, shape: Shape, trains: bool) -> int:
        """What a call costs, as forward passes of a token: back is twice forth, and starting it takes time, too."""
        return (3 if trains else 1) * (shape.rows * shape.width + self.settings.batch_tokens // 8)

    def _count_calls(self, shapes: list[Shape]) -> Counter:
        """How often each program would run, estimated from some batches where there are many."""
        every = max(1, len(self.queue) // MOST_COUNTED)
        calls: Counter = Counter()
        for number in self.queue[::every]:
            for rows in self._chunks(self.batches[number]):
                calls.update(kinds_of_calls(rows, shapes, self.num_devices))
        return Counter({call: every * count for call, count in calls.items()})

    def _chunks(self, batch: np.ndarray) -> Iterator[order.Rows]:
        own = self.documents[batch]
        return order.chunk_rows(own, self._chunk_of(own), self.settings.context)

    def _chunk_of(self, own: order.Documents) -> np.ndarray:
        return order.by_length(own.num_targets, self.settings.chunk_by_length, self.settings.chunk).astype(int)

    # --- a batch ---------------------------------------------------------------------------------

    def _batch(self, batch: np.ndarray) -> None:
        """Scores a batch of documents and adapts to each of them."""
        own, settings, programs = self.documents[batch], self.settings, self.programs
        goes_on = settings.warm_start and len(batch) == settings.batch_documents
        state = programs.begin(self.downs if goes_on else self._fresh(len(batch)))
        rates = order.by_length(own.num_targets, settings.learning_rate_by_length, settings.learning_rate)
        if self.tilt:
            self.log_weights = np.tile(self.tilt.log_weights, (len(batch), 1))
        for number, rows in enumerate(self._chunks(batch)):
            for call in calls_of(rows, self.shapes, self.num_devices):
                if self.num_calls >= self.lessons:
                    call = call._replace(rows=call.rows._replace(trains=np.zeros_like(call.rows.trains)))
                self.observe("predictions", self.num_calls, self._predictions(state, call))
                state, scores = programs.run(self.params, state, self.stream, call, rates, number)
                scores.copy_to_host_async()
                self.pending.append((self.num_calls, call, scores))
                self.num_calls += 1
                self._take(MOST_PENDING)
            self.observe("adapters", self.position, (number, state))
        if self.tilt:
            self._take(0)
            self.tilt.log_weights += np.sum(self.log_weights - self.tilt.log_weights, axis=0)
        if goes_on:
            # A document that has ended has no gradient, but its additions decay while others are still adapted to.
            total = order.num_chunks(own.num_targets, self._chunk_of(own))
            steps = settings.grad_steps * (total.max() - total)
            downs = {kind: pair.down for kind, pair in state.values.items()}
            self.downs = programs.decayed(downs, (1 - rates * settings.weight_decay) ** steps)

    def _predictions(self, state: Adapters, call: Call) -> Predictions | TiltedPredictions:
        rows, programs = call.rows[call.is_row], self.programs
        windows = Windows(rows.start, rows.length, rows.first)
        how = {"looped": self.looped, "rotary_length": self.settings.context}
        network = Predictions(
            *(self.config, self.params, self.text.tokens, windows, self.width, how),
            lambda window: programs.additions(state, int(rows.place[window])),
        )
        if self.tilt is None:
            return network

        def log_weights(target: int) -> np.ndarray:
            self._take(0)
            return self.log_weights[rows.place[network.window_of(target)]]

        return TiltedPredictions(network, self.tilt, log_weights)

    def _fresh(self, count: int) -> dict[str, jax.Array]:
        self.draws += 1
        return self.programs.place_downs(self.fresh_downs(self.draws - 1, count))

    def _take(self, most_pending: int) -> None:
        """Takes in scores, until at most so many calls are not taken in."""
        while len(self.pending) > most_pending:
            number, call, scores = self.pending.popleft()
            rows, scores = call.rows, np.asarray(scores)
            place = np.arange(scores.shape[1])
            scored = (place < rows.count[:, None]) & call.is_row[:, None]
            self.seen += int((rows.first[:, None] + place + 1)[scored].sum())
            targets = ((rows.start + rows.first)[:, None] + place)[scored]
            found = ScoredTargets(targets, *np.atleast_2d(scores[scored].T))
            if self.tilt:
                found = self._tilted(found, np.broadcast_to(rows.place[:, None], scored.shape)[scored])
            self.tally.add(found.targets, found.nats)
            self.observe("scored", number, found)

    def _tilted(self, found: ScoredTargets, places: np.ndarray) -> ScoredTargets:
        """The scores tilted to their hints, from which the weights of each one's document learn then."""
        hinted = self.tilt.hints[found.targets] != NONE
        places, nats = places[hinted], found.nats.copy()
        ratios = self.tilt.log_ratios(found.targets[hinted], found.hint_nats[hinted])
        nats[hinted] = self.tilt.tilted(nats[hinted], self.log_weights[places], ratios)
        np.add.at(self.log_weights, places, ratios)
        return ScoredTargets(found.targets, nats)

    # --- a phase ---------------------------------------------------------------------------------

    def _num_sgd_chunks(self, documents: order.Documents) -> int:
        return self.sgd.num_chunks(int(np.sum(documents.num_targets + 1)) - 1)

    def _phase(self, documents: order.Documents) -> None:
        """Trains all weights on scored documents; from there on additions begin afresh."""
        tokens, num_chunks, reports = order.joined(self.text.tokens, documents), self._num_sgd_chunks(documents), []
        if num_chunks > 1:
            self.programs.waited_for(self.sgd_ready)
            momentum = zeros_like(self.params, self.whole)
            params = self.params if self.owns_params else jax.tree.map(jnp.copy, self.params)
            for chunk in range(num_chunks - 1):
                params, momentum, done = self.sgd.train(params, momentum, tokens, chunk, num_chunks)
                reports += done
            self.params, self.owns_params = params, True
        for what, value in (("tokens", tokens), ("sgd", reports), ("weights", self.params)):
            self.observe(what, self.position, value)
        if self.settings.warm_start:
            self.downs = self._fresh(self.settings.batch_documents)

    # --- an interrupted evaluation ---------------------------------------------------------------

    def _save(self, elapsed_s: float) -> None:
        self._take(0)
        arrays = {"nats": self.tally.nats}
        if self.settings.warm_start:
            arrays |= {f"downs/{name}": array for name, array in self.programs.gather_downs(self.downs).items()}
        if self.owns_params:
            arrays |= {f"params/{path}": np.asarray(value) for path, value in self.params.items()}
        numbers = {"position": self.position, "draws": self.draws, "seen": self.seen}
        if self.tilt:
            arrays["log_weights"], numbers["gained_nats"] = self.tilt.log_weights, self.tilt.gained_nats
        seconds, compile_s = self.earlier_s + elapsed_s, self.earlier_compile_s + self.programs.waited_s
        self.kept.save(arrays, **numbers, seconds=seconds, compile_s=compile_s)

    def _load(self) -> None:
        params_bytes = sum(value.nbytes for value in self.params.values())
        found = self.kept.load(self.tally.nats.nbytes + self.programs.downs_bytes + params_bytes)
        if found is None:
            return
        arrays, numbers = found
        self.tally.restore(arrays["nats"])
        self.position, self.draws, self.seen = (int(numbers[name]) for name in ("position", "draws", "seen"))
        self.earlier_s, self.earlier_compile_s = numbers["seconds"], numbers["compile_s"]
        if self.tilt:
            self.tilt.log_weights, self.tilt.gained_nats = arrays["log_weights"], numbers["gained_nats"]
        params, downs = (
            {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            for prefix in ("params/", "downs/")
        )
        if params:
            self.params, self.owns_params = jax.device_put(params, self.whole), True
        if self.settings.warm_start:
            self.downs = self.programs.place_downs(downs)
