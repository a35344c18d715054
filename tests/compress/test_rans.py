"""The entropy coder, and the integers that it codes by."""

from __future__ import annotations

import contextlib

import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.compress.intervals import cumulative, intervals_of
from jgolf.compress.rans import TOTAL, Damaged, Decoder, Encoder

NUM_SYMBOLS, STEPS = 50, 400


def example(lanes: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Limits of the symbols' intervals, rare ones among them; symbols [steps, lanes]; and which lanes each step has."""
    rng = np.random.default_rng(lanes)
    weights = rng.dirichlet(np.full(NUM_SYMBOLS, 0.1))
    limits = np.concatenate([[0], np.cumsum(1 + np.floor(weights * (TOTAL - NUM_SYMBOLS)).astype(int))])
    limits[-1] = TOTAL
    symbols = np.minimum(rng.choice(NUM_SYMBOLS, (STEPS, lanes), p=weights), NUM_SYMBOLS - 1)
    symbols[::50] = np.argmin(np.diff(limits))
    taken = [np.flatnonzero(rng.random(lanes) < 0.8) for _ in range(STEPS)]
    return limits, symbols, taken


def encoded(limits: np.ndarray, symbols: np.ndarray, taken: list[np.ndarray]) -> bytes:
    encoder = Encoder(symbols.shape[1])
    for step in reversed(range(STEPS)):
        own = symbols[step, taken[step]]
        encoder.push(taken[step], limits[own], np.diff(limits)[own])
    return encoder.finish()


def decoded(data: bytes, limits: np.ndarray, lanes: int, taken: list[np.ndarray]) -> list[np.ndarray]:
    decoder, found = Decoder(data, lanes), []
    table = np.broadcast_to(limits.astype(np.int32), (lanes, len(limits)))
    for own in taken:
        found.append(np.asarray(decoder.symbols(table, np.isin(np.arange(lanes), own)))[own])
    decoder.finish()
    return found


@pytest.mark.parametrize("lanes", [1, 7])
def test_symbols_come_back_and_take_what_they_inform(lanes):
    limits, symbols, taken = example(lanes)
    data = encoded(limits, symbols, taken)
    own = [symbols[step, lanes] for step, lanes in enumerate(taken)]
    for found, expected in zip(decoded(data, limits, lanes, taken), own, strict=True):
        np.testing.assert_array_equal(found, expected)
    bits = np.sum(np.log2(TOTAL / np.diff(limits)[np.concatenate(own)]))
    assert bits < 8 * len(data) < bits * 1.0001 + 64 * lanes


def test_damage_is_found_or_gives_other_symbols():
    limits, symbols, taken = example(3)
    data, rng, refused = encoded(limits, symbols, taken), np.random.default_rng(0), 0
    for number in range(60):
        bad = bytearray(data)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        with contextlib.suppress(Damaged):
            decoded(bytes(bad[: rng.integers(len(bad))] if number % 3 == 0 else bad), limits, 3, taken)
            refused -= 1
        refused += 1
    assert refused == 60


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("num_symbols", [2, 260, 8192, 1 << 16])
def test_integers_follow_the_probabilities(num_symbols):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (5, num_symbols)).astype(np.float32)
    logits[1], logits[2, 0], logits[3, -1] = 0, 1e4, -1e4
    table = np.asarray(cumulative(jnp.asarray(logits)))
    counts = np.diff(table)
    assert table.shape == (5, num_symbols + 1) and (table[:, 0] == 0).all() and (table[:, -1] == TOTAL).all()
    assert counts.min() >= 1
    likeliest = np.arange(num_symbols) == logits.argmax(axis=1)[:, None]
    expected = softmax(logits) * (TOTAL - num_symbols) * (1 - 2.0**-12)
    np.testing.assert_allclose(counts[~likeliest], 1 + expected[~likeliest], rtol=2e-5, atol=1.01)
    # What rounding costs, on average over the distribution itself.
    loss = np.sum(softmax(logits) * np.log2(np.maximum(softmax(logits), 1e-300) * TOTAL / counts), axis=1)
    assert loss.max() < 1.5 * (2.0**-12 + num_symbols / TOTAL)


def test_the_interval_of_a_symbol():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 2, (6, 40)), jnp.float32)
    table, symbols = cumulative(logits), rng.integers(0, 40, 6)
    (starts, counts), nats = (np.asarray(part) for part in intervals_of(table, logits, symbols))
    limits = np.asarray(table)[np.arange(6)[:, None], symbols[:, None] + [0, 1]]
    np.testing.assert_array_equal(np.stack([starts, starts + counts], axis=1), limits)
    np.testing.assert_allclose(nats, -np.log(softmax(np.asarray(logits))[np.arange(6), symbols]), rtol=1e-5)


@pytest.mark.parametrize(("rows", "lanes"), [(5, 5), (40, 3), (32, 2)])
def test_lanes_serve_rows_in_turn(rows, lanes):
    rng = np.random.default_rng(rows)
    tables = np.asarray(cumulative(jnp.asarray(rng.normal(0, 3, (8 * rows, 30)), jnp.float32))).reshape(8, rows, 31)
    symbols, there = rng.integers(0, 30, (8, rows)), rng.random((8, rows)) < 0.8
    encoder = Encoder(lanes)
    for step, first in reversed([(step, first) for step in range(8) for first in range(0, rows, lanes)]):
        served = first + np.flatnonzero(there[step, first : first + lanes])
        starts, ends = tables[step][served, symbols[step, served]], tables[step][served, symbols[step, served] + 1]
        encoder.push(served - first, starts, ends - starts)
    decoder = Decoder(encoder.finish(), lanes)
    for step in range(8):
        found = decoder.symbols(tables[step], there[step])
        np.testing.assert_array_equal(found, np.where(there[step], symbols[step], 0))
    decoder.finish()
