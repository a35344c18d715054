"""What was found of a config, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from jgolf.bench.cluster.lost import Lost
from jgolf.bench.cluster.worker import LOOPED, PLAIN, Measured
from jgolf.bench.report import Figure, timed
from jgolf.config import Config, TrainConfig

CHALLENGE_DEVICES = 8
CHALLENGE_S = 600.0
PUBLISHED_STEPS = {"pr592": 4973, "pr1855": 4931}
"""Steps that the challenge's records of these names made in their time."""
LOSS_BOUND = 0.01
"""Nats by which losses in bfloat16 may differ where sums are taken in another order."""
STEPS = "steps within the time cap"
STEP = {PLAIN: "a step", LOOPED: "a step with the loop"}


@dataclass
class Findings:
    """What was measured of a config; None, or nothing in it, where that was not done.

    Attributes:
      config: its settings.
      devices: N.
      together: the whole batch, all devices in one process.
      apart: the same with a process a device.
      share: one device, with its Nth of the batch.
      whole: one device, with the whole batch.
      lost: what followed when a process was killed.
    """

    config: Config
    devices: int
    together: Measured = field(default_factory=Measured)
    apart: Measured = field(default_factory=Measured)
    share: Measured = field(default_factory=Measured)
    whole: Measured = field(default_factory=Measured)
    lost: Lost | None = None

    def figures(self) -> list[Figure]:
        """All that is known, in the order of the table."""
        parts = self._times(), self._memory(), self._losses(), self._collectives(), self._challenge(), self._lost()
        return [figure for part in parts for figure in part]

    @property
    def placed(self) -> tuple[tuple[str, Measured], ...]:
        """The two ways to use all devices, in words."""
        count = self.devices
        return (f"{count} devices in one process", self.together), (f"{count} processes of one device", self.apart)

    def _times(self) -> Iterator[Figure]:
        for kind in (PLAIN, LOOPED):
            own, whole = _ms(self.share, kind), _ms(self.whole, kind)
            if own is not None:
                name = f"{STEP[kind]}, one device, a {_ordinal(self.devices)} of the tokens"
                yield timed(name, self.share.step_ms[kind])
            if whole is not None:
                yield timed(f"{STEP[kind]}, one device, all tokens", self.whole.step_ms[kind])
            for where, measured in self.placed:
                took = _ms(measured, kind)
                if took is None:
                    continue
                name = f"{STEP[kind]}, {where}"
                yield timed(name, measured.step_ms[kind])
                if own is not None:
                    yield Figure(f"{name}: of linear scaling", 100 * own / took, "%")
                if whole is not None:
                    yield Figure(f"{name}: times as fast", whole / took, "×")

    def _memory(self) -> Iterator[Figure]:
        for where, measured in (*self.placed, ("one device", self.share)):
            if measured.peak_gb is not None:
                yield Figure(f"peak memory of a device, {where}", measured.peak_gb, "GB")

    def _losses(self) -> Iterator[Figure]:
        together, apart, whole = self.together.losses, self.apart.losses, self.whole.losses
        for what, one, other in (
            (f"{self.devices} devices against one device", together, whole),
            (f"{self.devices} processes against one process", together, apart),
        ):
            if one and other:
                yield Figure(f"largest difference of {len(one)} losses, {what}", largest_difference(one, other), "nats")

    def _collectives(self) -> Iterator[Figure]:
        for exchange in self.together.exchanges or []:
            name = f"{exchange.kind} of {exchange.dtype} in a step"
            yield Figure(f"{name}: operations", exchange.count, "")
            yield Figure(f"{name}: bytes", exchange.num_bytes / 1e6, "MB")
        took = self.together.collectives
        if took is not None:
            yield Figure("collectives in a step, waiting included", took.whole_ms, "ms")
            yield Figure("of it, on the device that waits least", took.least_whole_ms, "ms")
            yield Figure("of it, not hidden behind other kernels", took.exposed_ms, "ms")
            step = _ms(self.together, PLAIN)
            if step is not None:
                yield Figure("of the step, not hidden", 100 * took.exposed_ms / step, "%")

    def _challenge(self) -> Iterator[Figure]:
        train = self.config.train
        cap_s = train.time_cap_s or CHALLENGE_S
        for where, measured in self.placed:
            if measured.first_step_s is not None:
                yield Figure(f"start to first step, {where}", measured.first_step_s, "s")
        for where, measured in self.placed:
            times = {kind: _ms(measured, kind) for kind in (PLAIN, LOOPED)}
            if times[PLAIN] is None:
                continue
            yield Figure(f"{STEPS}, {where}", steps_within(cap_s, train, **times), "")
            if self.devices != CHALLENGE_DEVICES and measured is self.together:
                there = {kind: self._on_challenge_devices(kind) for kind in times}
                if there[PLAIN] is not None:
                    name = f"{STEPS}, estimated for {CHALLENGE_DEVICES} devices"
                    yield Figure(name, steps_within(cap_s, train, **there), "")
        if self.config.name in PUBLISHED_STEPS:
            yield Figure(f"steps of the record, {CHALLENGE_DEVICES} devices", PUBLISHED_STEPS[self.config.name], "")

    def _on_challenge_devices(self, kind: str) -> float | None:
        """A step's milliseconds on as many devices as the challenge's, from those here and what a token takes."""
        took, own, whole = (_ms(measured, kind) for measured in (self.together, self.share, self.whole))
        if took is None or own is None or whole is None:
            return None
        of_one, more = 1 / self.devices, 1 / CHALLENGE_DEVICES
        return took + (more - of_one) * (whole - own) / (1 - of_one)

    def _lost(self) -> Iterator[Figure]:
        if self.lost is None:
            return
        one = f"resumed on {self.lost.resumed_on} of {self.devices} devices"
        yield Figure("steps when a process was killed", self.lost.killed_after, "")
        yield Figure("a process killed: all others had ended after", self.lost.ended_s, "s")
        yield Figure(f"{one}: step of the checkpoint", self.lost.resumed_after, "")
        yield Figure(f"{one}: start to first step", self.lost.resumed_s, "s")
        yield Figure(f"{one}: steps that were trained again", self.lost.common_steps, "")
        if self.lost.difference is not None:
            yield Figure(f"{one}: largest difference of their losses", self.lost.difference, "nats")
        yield Figure(f"{one}: last step", self.lost.last_step, "")

    def exceeded(self) -> list[str]:
        """The differences of losses that are more than what the type of the arithmetic explains."""
        return [
            f"{self.config.name}: {figure.name}: {figure.value:.4g} nats, expected at most {LOSS_BOUND:g}"
            for figure in self.figures()
            if figure.unit == "nats" and not figure.value <= LOSS_BOUND
        ]


def largest_difference(one: list[float], other: list[float]) -> float:
    """Of two lists of losses, number by number."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def steps_within(cap_s: float, train: TrainConfig, plain: float, looped: float | None = None) -> float:
    """Steps that a run makes in so many seconds, no more than its settings allow.

    Args:
      cap_s: training time in seconds.
      train: its steps, and the part of the run, by steps or time, whichever is more, after which the loop is on.
      plain: milliseconds of a step before.
      looped: milliseconds of a step from then on; None where all steps are alike.
    """
    if looped is None:
        return min(train.steps, 1000 * cap_s / plain)
    start = train.loop_start_fraction
    before = min(start * train.steps, start * 1000 * cap_s / plain)
    return min(train.steps, before + (1000 * cap_s - before * plain) / looped)


def _ms(measured: Measured, kind: str) -> float | None:
    """The median of a step."""
    timing = (measured.step_ms or {}).get(kind)
    return None if timing is None else timing.median_ms


def _ordinal(number: int) -> str:
    return {2: "half", 4: "quarter"}.get(number, f"{number}th")
