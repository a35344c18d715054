import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jgolf.optim.muon import (
    COEFFICIENTS,
    look_ahead,
    nesterov,
    newton_schulz,
    normalize_neurons,
    orthogonalize_tree,
    rows_normalized,
    scale_by_muon,
    share_over_devices,
)

POLAR_EXPRESS = COEFFICIENTS["polar_express"]
FULL_RANK = ("square", "wide", "tall")


@pytest.fixture(scope="module")
def arrays(golden):
    return np.load(golden / "tiny" / "newton_schulz.npz")


@pytest.fixture(scope="module")
def polar(golden):
    """The record's Newton-Schulz and Muon; its matrices are (outputs, inputs)."""
    return np.load(golden / "pr1855" / "newton_schulz.npz")


def orthogonalized(matrices, **options):
    """`newton_schulz` of one matrix or a batch."""
    batch = jnp.asarray(matrices).reshape(-1, *matrices.shape[-2:])
    return np.asarray(newton_schulz(batch, coefficients=POLAR_EXPRESS, **options), np.float32).reshape(matrices.shape)


def distance(found, expected):
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)


def test_newton_schulz_in_float32(arrays):
    found = newton_schulz(arrays["g"][None], dtype="float32")[0]
    np.testing.assert_allclose(found, arrays["out_f32"], rtol=0, atol=2e-5 * np.abs(arrays["out_f32"]).max())


def test_newton_schulz_in_bfloat16(arrays):
    found = newton_schulz(arrays["g"][None])[0]
    assert found.dtype == jnp.bfloat16
    # The reference's own bfloat16 run is this far from its float32 run.
    reference_error = np.linalg.norm(arrays["out_bf16"] - arrays["out_f32"])
    assert np.linalg.norm(np.asarray(found, np.float32) - arrays["out_f32"]) < 1.5 * reference_error


def test_a_tall_matrix_is_orthogonalized_as_its_transpose(arrays):
    tree = {"wide": jnp.asarray(arrays["g"]), "tall": jnp.asarray(arrays["g"].T)}
    found = orthogonalize_tree(tree, lambda matrices: newton_schulz(matrices, dtype="float32"))
    np.testing.assert_allclose(found["tall"], arrays["gT_out_f32"], atol=2e-5)
    np.testing.assert_allclose(found["tall"], found["wide"].T, atol=2e-6)


@pytest.mark.parametrize("tag", [*FULL_RANK, "zero", "rank1"])
def test_polar_express_in_float32(polar, tag):
    given = polar[f"{tag}/in"]
    assert distance(orthogonalized(given, steps=1, dtype="float32"), polar[f"{tag}/f32_steps1"]) < 1e-4
    allowed = 2e-3 if tag == "rank1" else 1e-4
    for steps in (5, 9):  # there are coefficients for five iterations
        found = orthogonalized(given, steps=steps, dtype="float32")
        assert distance(found, polar[f"{tag}/f32_steps5"]) < allowed


@pytest.mark.parametrize("tag", [*FULL_RANK, "zero", "rank1"])
def test_bfloat16_rounded_after_every_operation_is_pytorch_s_bit_for_bit(polar, tag):
    np.testing.assert_array_equal(orthogonalized(polar[f"{tag}/in"], round_each=True), polar[f"{tag}/bf16_steps5"])


@pytest.mark.parametrize("tag", FULL_RANK)
def test_bfloat16_rounded_after_chains_of_operations_is_near(polar, tag):
    assert distance(orthogonalized(polar[f"{tag}/in"]), polar[f"{tag}/bf16_steps5"]) < 0.15


@pytest.mark.parametrize("steps", [1, 5, 9])
@pytest.mark.parametrize("coefficients", COEFFICIENTS.values(), ids=COEFFICIENTS.keys())
def test_a_traced_number_of_iterations(arrays, coefficients, steps):
    def run(steps):
        return newton_schulz(arrays["g"][None], steps, "float32", coefficients)

    np.testing.assert_allclose(jax.jit(run)(steps), run(steps), atol=1e-5)


@pytest.mark.parametrize("coefficients", [(1.0, 2.0), ((1.0, 2.0, 3.0, 4.0),), (), 3.0])
def test_coefficients_of_another_shape_are_refused(coefficients):
    with pytest.raises(ValueError, match=r"one \(a, b, c\) or a table of them, found an array of shape"):
        newton_schulz(jnp.ones((1, 2, 3)), coefficients=coefficients)


@pytest.mark.parametrize("tag", ["wide", "tall"])
def test_the_chain_takes_the_record_s_steps(polar, tag):
    """Two steps of the whole Muon on the two matrices of a bank."""
    given = polar[f"{tag}/in"]
    params = {name: jnp.ones_like(given[0].T) for name in "ab"}
    muon = scale_by_muon(0.9, 5, "float32", newton_schulz_coefficients=POLAR_EXPRESS, row_normalization=True)
    optimizer = optax.chain(muon, optax.add_decayed_weights(0.2), optax.scale(-0.1))
    state = optimizer.init(params)
    for name, bank in (("muon_p1", given), ("muon_p2", 0.7 * given[..., ::-1])):
        grads = {name: jnp.asarray(matrix.T) for name, matrix in zip("ab", bank, strict=True)}
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        for own, expected in zip(params.values(), polar[f"{tag}/{name}"], strict=True):
            assert distance(own.T, expected) < 1e-4
            assert distance(own.T - 1, expected - 1) < 2e-3


def test_newton_schulz_equals_the_polynomial_of_the_singular_values():
    matrix = np.random.default_rng(0).normal(size=(6, 10))
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s /= np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    found = newton_schulz(jnp.asarray(matrix, jnp.float32)[None], dtype="float32")[0]
    np.testing.assert_allclose(found, (u * s) @ vt, atol=3e-5)


def test_agrees_with_optax_contrib():
    """Newton-Schulz removes the scale between a sum and an average.

    Optax also corrects the bias of its average before the Nesterov step, which fades with the steps.
    """
    rng = np.random.default_rng(1)
    params = {"square": jnp.zeros((8, 8)), "wide": jnp.zeros((6, 12)), "tall": jnp.zeros((12, 6))}
    dimensions = {name: optax.contrib.MuonDimensionNumbers(0, 1) for name in params}
    ours = scale_by_muon(0.8, newton_schulz_dtype="float32")
    # Its whole chain, scale by shape included, and a learning rate of -1, since it turns the sign.
    theirs = optax.contrib.muon(-1.0, beta=0.8, eps=1e-7, muon_weight_dimension_numbers=dimensions)
    our_state, their_state = ours.init(params), theirs.init(params)
    our_update, their_update = jax.jit(ours.update), jax.jit(theirs.update)
    for _ in range(80):
        grads = {name: jnp.asarray(rng.normal(size=value.shape), jnp.float32) for name, value in params.items()}
        ours_now, our_state = our_update(grads, our_state)
        theirs_now, their_state = their_update(grads, their_state, params)
    for name in params:
        np.testing.assert_allclose(ours_now[name], theirs_now[name], atol=3e-4)


def test_nesterov_is_optax_s_trace():
    rng = np.random.default_rng(2)
    ours, theirs = nesterov(0.9), optax.trace(0.9, nesterov=True)
    params = {"a": jnp.zeros((3, 4))}
    our_state, their_state = ours.init(params), theirs.init(params)
    for _ in range(3):
        grads = {"a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
        ours_now, our_state = ours.update(grads, our_state)
        theirs_now, their_state = theirs.update(grads, their_state)
        np.testing.assert_allclose(ours_now["a"], theirs_now["a"], rtol=1e-6)


def test_every_output_s_row_has_norm_one():
    kernel = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
    kernel[:, 1] = 0.0
    for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 1e-2)):
        found = rows_normalized(jnp.asarray([kernel, 2 * kernel], dtype))
        assert found.dtype == dtype
        norms = np.linalg.norm(np.asarray(found, np.float32), axis=1)
        np.testing.assert_allclose(norms, [[1, 0, 1]] * 2, atol=tolerance)


def test_shape_factor_is_of_outputs_over_inputs():
    grads = {"wide": jnp.ones((4, 16)), "tall": jnp.ones((16, 4))}
    transform = scale_by_muon(0.0, newton_schulz_dtype="float32")
    updates, _ = transform.update(grads, transform.init(grads))
    np.testing.assert_allclose(updates["wide"], 2 * updates["tall"].T, rtol=1e-5)


def test_momentum_schedule_counts_steps():
    transform = scale_by_muon(lambda count: 0.1 * count, newton_schulz_steps=0, newton_schulz_dtype="float32")
    grads = {"a": jnp.eye(3)}
    state = transform.init(grads)
    for _ in range(3):
        _, state = transform.update(grads, state)
    # m = 0·0 + g; 0.1·m + g; 0.2·m + g
    np.testing.assert_allclose(state.momentum["a"], 1.22 * np.eye(3), rtol=1e-6)


def test_composes_with_optax_chain_under_jit():
    transform = optax.chain(scale_by_muon(0.95), optax.add_decayed_weights(0.1), optax.scale(-0.02))
    params = {"a": jnp.ones((4, 6))}
    updates, _ = jax.jit(transform.update)({"a": jnp.ones((4, 6))}, transform.init(params), params)
    assert updates["a"].shape == (4, 6)
    assert np.isfinite(updates["a"]).all()


def test_numbers_may_be_injected_and_changed():
    grads = {"a": jnp.asarray(np.random.default_rng(4).normal(size=(4, 6)), jnp.float32)}
    injected = optax.inject_hyperparams(scale_by_muon)(momentum=0.9, newton_schulz_dtype="float32")
    state, update = injected.init(grads), jax.jit(injected.update)
    plain = scale_by_muon(0.9, newton_schulz_dtype="float32")
    expected, _ = plain.update(grads, plain.init(grads))
    found, state = update(grads, state, grads)
    np.testing.assert_allclose(found["a"], expected["a"], atol=1e-6)
    state.hyperparams["momentum"] = jnp.float32(0.5)
    _, state = update(grads, state, grads)
    np.testing.assert_allclose(state.inner_state.momentum["a"], 1.5 * grads["a"], rtol=1e-6)
    scheduled = optax.inject_hyperparams(scale_by_muon)(
        lambda count: 0.1 * count, newton_schulz_coefficients=POLAR_EXPRESS
    )
    _, state = jax.jit(scheduled.update)(grads, scheduled.init(grads), grads)
    assert float(state.hyperparams["momentum"]) == 0.0


@pytest.mark.parametrize("momentum", [0.9, jnp.float32(0.9), lambda count: 0.9 + 0.0 * count])
def test_bfloat16_parameters_are_skipped_where_gradients_are_not_finite(momentum):
    params = {"a": jnp.ones((4, 6), jnp.bfloat16)}
    guarded = optax.apply_if_finite(scale_by_muon(momentum, row_normalization=True), 3)
    update = jax.jit(guarded.update)
    state = guarded.init(params)
    updates, state = update(params, state, params)
    assert updates["a"].dtype == state.inner_state.momentum["a"].dtype == jnp.bfloat16
    assert np.abs(np.asarray(updates["a"], np.float32)).min() > 0
    skipped, after = update({"a": jnp.full((4, 6), jnp.nan, jnp.bfloat16)}, state, params)
    assert not np.asarray(skipped["a"], np.float32).any()
    np.testing.assert_array_equal(after.inner_state.momentum["a"], state.inner_state.momentum["a"])


def test_momentum_is_not_rounded_to_the_matrices_type():
    """180 × 0.97 = 174.6 is 175 in bfloat16; 0.97 itself is 0.96875 there, and 180 × that is 174."""
    params = {"a": jnp.full((2, 2), 180.0, jnp.bfloat16)}
    for momentum in (0.97, jnp.float32(0.97)):
        transform = nesterov(momentum)
        _, state = transform.update(params, transform.init(params))
        _, state = transform.update({"a": jnp.zeros((2, 2), jnp.bfloat16)}, state)
        assert float(state.momentum["a"][0, 0]) == 175


def test_vectors_are_refused_by_name():
    with pytest.raises(ValueError, match="gain"):
        scale_by_muon().init({"gain": jnp.ones(3)})


def test_sharing_over_a_mesh_of_one_changes_nothing(arrays):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    shared = share_over_devices(newton_schulz, "data")
    run = jax.shard_map(shared, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    stack = jnp.stack([jnp.asarray(arrays["g"])] * 3)
    np.testing.assert_array_equal(run(stack), newton_schulz(stack))


def neurons_normalized(u, v, decay):
    """NorMuon's normalization of one (inputs, outputs) matrix in float64: the matrix and its new mean squares."""
    v = decay * v + (1 - decay) * np.mean(u**2, axis=0)
    divided = np.divide(u, np.sqrt(v), out=np.zeros_like(u), where=v > 0)
    return divided * np.linalg.norm(u) / np.linalg.norm(divided), v


def test_neurons_are_normalized_after_the_orthogonalization():
    """Four steps, by NumPy in float64 from Muon's own directions; NorMuon's rows are our columns."""
    rng = np.random.default_rng(3)
    params = {"wide": jnp.zeros((4, 9)), "tall": jnp.zeros((9, 4))}
    muon = scale_by_muon(0.9, newton_schulz_dtype="float32", row_normalization=True)
    normalized = optax.chain(muon, normalize_neurons(0.8))
    muon_state, state = muon.init(params), normalized.init(params)
    squares = dict.fromkeys(params, 0.0)
    for _ in range(4):
        grads = {name: rng.normal(size=value.shape) for name, value in params.items()}
        grads = {name: jnp.asarray(g, jnp.float32).at[:, 2].set(0.0) for name, g in grads.items()}
        before, muon_state = muon.update(grads, muon_state)
        after, state = normalized.update(grads, state)
        for name, direction in before.items():
            u = np.asarray(direction, np.float64)
            squares[name] = 0.8 * squares[name] + 0.2 * np.mean(u**2, axis=0)
            divided = np.divide(u, np.sqrt(squares[name]), out=np.zeros_like(u), where=squares[name] > 0)
            expected = divided * np.linalg.norm(u) / np.linalg.norm(divided)
            np.testing.assert_allclose(after[name], expected, atol=2e-5)
            assert not np.any(np.asarray(after[name])[:, 2])  # an output that gets no gradient stays as it is


def test_neurons_of_nothing_are_nothing():
    params = {"a": jnp.zeros((3, 4))}
    transform = normalize_neurons(0.9)
    np.testing.assert_array_equal(transform.update(params, transform.init(params))[0]["a"], np.zeros((3, 4)))


def test_gradients_are_taken_ahead_of_the_weights():
    """Gradient descent with its weights, their moving average and the point ahead each written out."""
    curvature = np.array([0.5, 1.0, 3.0])
    transform = look_ahead(0.3, 0.9)
    params = {"a": jnp.array([1.0, -2.0, 0.5])}
    state = transform.init(params)
    x = mean = np.asarray(params["a"], np.float64)
    for step in range(30):
        rate = 0.1 * (1 - step / 30)
        ahead = x + 0.3 * (x - mean)
        np.testing.assert_allclose(params["a"], ahead, atol=1e-6)
        updates, state = transform.update({"a": -rate * curvature * params["a"]}, state)
        params = optax.apply_updates(params, updates)
        x = x - rate * curvature * ahead
        mean = 0.9 * mean + 0.1 * x
    np.testing.assert_allclose(params["a"] - 0.3 * state["a"], x, atol=1e-6)
