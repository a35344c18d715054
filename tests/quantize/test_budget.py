"""Searches with a size that is the levels' own entropy, worked out here."""

import dataclasses

import jax
import numpy as np
import pytest

from jgolf.errors import ArtifactError, JgolfError
from jgolf.model.functional import parameter_shapes
from jgolf.quantize.budget import quantize_to_budget
from jgolf.quantize.curvature import Curvature, curvature
from jgolf.quantize.export import quantize
from tests.conftest import RECIPE

CONFIG = dataclasses.replace(RECIPE.quantize, small_size=0)
UP, TABLE, GATE = "blocks/0/mlp/up_proj/kernel", "bigram/embedding", "smear/gate"


def entropy_bytes(stored):
    total = 0.0
    for tensor in stored.values():
        if tensor.scales is None:
            total += tensor.values.nbytes
        else:
            counts = np.unique(tensor.values, return_counts=True)[1]
            total += -(counts * np.log2(counts / counts.sum())).sum() / 8 + tensor.scales.nbytes
    return round(total)


def pack(stored):
    """Bytes of that number."""
    return bytes(entropy_bytes(stored))


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = {
        UP: rng.normal(size=(64, 192)).astype(np.float32),
        TABLE: rng.normal(size=(256, 32)).astype(np.float32) * 0.1,
        GATE: rng.normal(size=64).astype(np.float32),
    }
    curvatures = {}
    for path, rows, columns in ((UP, 192, 64), (TABLE, 256, 32)):
        inputs = rng.normal(size=(500, columns)) @ rng.normal(size=(columns, columns))
        measure = inputs.T @ inputs / 500
        share = rng.exponential(size=rows)
        curvatures[path] = Curvature(share / share.sum() * np.trace(measure), measure)
    return params, curvatures


def damage(params, curvatures, stored):
    errors = {path: stored[path].dequantize() - params[path] for path in curvatures}
    return sum(curvatures[p].damage(e.T if p.endswith("kernel") else e) for p, e in errors.items())


@pytest.mark.parametrize("form", ["int4", "int5", "int6", "int7"])
def test_the_budget_is_filled_for_far_less_damage_than_equal_bits_do(problem, form):
    params, curvatures = problem
    plain = quantize(params, dataclasses.replace(CONFIG, mlp=form, table=form, scale_floor=False))
    budget_bytes = entropy_bytes(plain)
    found = quantize_to_budget(params, curvatures, CONFIG, budget_bytes, pack)
    assert 0.99 * budget_bytes < entropy_bytes(found.stored) <= budget_bytes
    assert found.trials < 8 and len(found.artifact) == entropy_bytes(found.stored)
    assert found.damage == pytest.approx(damage(params, curvatures, found.stored))
    assert found.damage < 0.5 * damage(params, curvatures, plain)


def test_more_bytes_never_cost_more(problem):
    params, curvatures = problem
    damages = [
        quantize_to_budget(params, curvatures, CONFIG, budget_bytes, pack).damage
        for budget_bytes in (3000, 5000, 8000, 12000, 16000, 30000, 10**9)
    ]
    assert damages == sorted(damages, reverse=True) and damages[-1] < 1e-4 * damages[0]


def test_forms_are_as_wide_as_the_levels_need(problem):
    params, curvatures = problem
    forms = []
    for budget_bytes in (3000, 8000, 14000, 10**9):
        stored = quantize_to_budget(params, curvatures, CONFIG, budget_bytes, pack).stored
        assert list(stored) == list(params) and stored[GATE].form == "fp32"
        for tensor in stored.values():
            if tensor.scales is not None:
                largest = np.abs(tensor.values.astype(int)).max()
                assert largest < 2 ** (tensor.bits - 1) and (tensor.bits == 4 or largest >= 2 ** (tensor.bits - 2))
        forms.append(stored[UP].form)
    assert forms == sorted(forms, key=["int4", "int5", "int6", "int7", "int8", "fp16"].index)
    assert forms[0] != forms[-1] == "fp16"


def test_a_budget_that_nothing_meets_names_the_smallest_size(problem):
    params, curvatures = problem
    smallest_bytes = 2 * (192 + 256) + 4 * 64  # scales and the FP32 vector; levels that are all zero have no entropy
    with pytest.raises(JgolfError, match=f"even with every matrix rounded to zero it takes {smallest_bytes:,}"):
        quantize_to_budget(params, curvatures, CONFIG, smallest_bytes - 1, pack)
    found = quantize_to_budget(params, curvatures, CONFIG, smallest_bytes, pack)
    assert not found.stored[UP].values.any()
    smaller = dataclasses.replace(CONFIG, control="fp16")
    assert quantize_to_budget(params, curvatures, smaller, smallest_bytes - 1, pack).stored[GATE].form == "fp16"


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_calibration_lacks_are_kept_and_are_finer_where_other_text_has_them(tied):
    model = dataclasses.replace(RECIPE.model, 
        vocab_size=64, num_layers=1, model_dim=16, num_heads=2, num_kv_heads=1, bigram_buckets=0, xsa_layers=(),
        rope_dims=4, value_embedding_layers=(), tie_embeddings=tied, compute_dtype="float32",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = {path: np.float32(0.3 * rng.normal(size=shape)) for path, shape in parameter_shapes(model).items()}
    tokens = rng.integers(0, 32, (8, 64)).astype(np.int32)  # half the vocabulary is not in it
    budget_bytes = sum(value.size for value in params.values()) * 5 // 8

    def errors(counted) -> np.ndarray:
        curvatures = curvature(model, params, tokens, jax.random.key(0), counted=counted)
        found = quantize_to_budget(params, curvatures, CONFIG, budget_bytes, pack).stored["embed/embedding"]
        whole = params["embed/embedding"]
        return np.linalg.norm(found.dequantize() - whole, axis=1) / np.linalg.norm(whole, axis=1)

    error = errors(())
    assert error[:32].max() < 0.2 and error[32:].max() < 0.7, "unseen rows are coarser, not wiped"
    even = errors([np.arange(64, dtype=np.uint16)] * 100)
    assert even[32:].mean() < 0.6 * error[32:].mean() and even[32:].max() < 0.25


def test_weights_and_curvatures_of_zero(problem):
    params, curvatures = problem
    params = {**params, UP: np.zeros((64, 192), np.float32)}
    curvatures = {**curvatures, TABLE: Curvature(np.zeros(256), np.zeros((32, 32)))}
    found = quantize_to_budget(params, curvatures, CONFIG, 4000, pack)
    assert found.damage == 0 and entropy_bytes(found.stored) <= 4000
    assert not found.stored[UP].dequantize().any()


def test_values_that_cannot_be_held_are_refused_by_name(problem):
    params, curvatures = problem
    with pytest.raises(ArtifactError, match="smear/gate: 1 values are not finite"):
        quantize_to_budget({**params, GATE: np.array([1, np.nan])}, curvatures, CONFIG, 9000, pack)
    with pytest.raises(ArtifactError, match="up_proj/kernel: largest magnitude 1e.09 is past .* choose fp32"):
        quantize_to_budget({**params, UP: np.full((64, 192), 1e9)}, curvatures, CONFIG, 9000, pack)


@pytest.mark.parametrize("factor", [0.9, 0.999, 1.0, 1.05])
def test_a_faster_packer_saves_packing(problem, factor):
    """Its sizes are off by a factor; what fills the budget is the real artifact."""
    params, curvatures = problem
    packed = []

    def pack_slowly(stored):
        packed.append(entropy_bytes(stored))
        return bytes(packed[-1])

    def pack_fast(stored):
        return bytes(round(factor * entropy_bytes(stored)))

    found = quantize_to_budget(params, curvatures, CONFIG, 10_000, pack_slowly, pack_fast)
    assert 0.999 * 10_000 <= len(found.artifact) <= 10_000 and len(found.artifact) == entropy_bytes(found.stored)
    assert len(packed) <= 4  # all zeros, and at most three that seemed to fit


def test_a_loss_decides_whether_code_length_counts(problem):
    """Counting it shrinks weights: a loss that falls with their size wants it, one that rises does not."""

    def size(stored):
        return float(sum(np.abs(tensor.dequantize()).sum() for tensor in stored.values()))

    small = quantize_to_budget(*problem, CONFIG, 5_000, pack, loss=size)
    large = quantize_to_budget(*problem, CONFIG, 5_000, pack, loss=lambda stored: -size(stored))
    assert (small.rate_weight, large.rate_weight) == (1.0, 0.0)
    assert size(small.stored) < size(large.stored)
    assert max(len(small.artifact), len(large.artifact)) <= 5_000


def test_trials_are_shown(problem):
    shown = []

    def progress(steps, total):
        for step in steps:
            shown.append((step, total))
            yield step

    found = quantize_to_budget(*problem, CONFIG, 10_000, pack, progress=progress)
    assert [step for step, _ in shown] == list(range(found.trials))
