import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jgolf.optim.muon import newton_schulz, orthogonalize_tree, scale_by_muon, share_over_devices


@pytest.fixture(scope="module")
def arrays(golden):
    return np.load(golden / "tiny" / "newton_schulz.npz")


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
    np.testing.assert_array_equal(found["tall"], found["wide"].T)


def test_newton_schulz_equals_the_polynomial_of_the_singular_values():
    matrix = np.random.default_rng(0).normal(size=(6, 10))
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s /= np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    found = newton_schulz(jnp.asarray(matrix, jnp.float32)[None], dtype="float32")[0]
    np.testing.assert_allclose(found, (u * s) @ vt, atol=3e-5)


def test_agrees_with_optax_contrib_where_both_do_the_same():
    """Square matrices have no shape factor; Newton-Schulz removes the scale between a sum and an average.

    Optax also corrects the bias of its average before the Nesterov step, which fades with the steps.
    """
    rng = np.random.default_rng(1)
    params = {"a": jnp.zeros((8, 8)), "b": jnp.zeros((8, 8))}
    dimensions = {name: optax.contrib.MuonDimensionNumbers(0, 1) for name in params}
    ours = scale_by_muon(0.8, newton_schulz_dtype="float32")
    theirs = optax.contrib.scale_by_muon(beta=0.8, eps=1e-7, weight_dimension_numbers=dimensions)
    our_state, their_state = ours.init(params), theirs.init(params)
    our_update, their_update = jax.jit(ours.update), jax.jit(theirs.update)
    for _ in range(80):
        grads = {name: jnp.asarray(rng.normal(size=(8, 8)), jnp.float32) for name in params}
        ours_now, our_state = our_update(grads, our_state)
        theirs_now, their_state = their_update(grads, their_state)
    for name in params:
        np.testing.assert_allclose(ours_now[name], theirs_now[name], atol=2e-4)


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


def test_vectors_are_refused_by_name():
    with pytest.raises(ValueError, match="gain"):
        scale_by_muon().init({"gain": jnp.ones(3)})


def test_sharing_over_a_mesh_of_one_changes_nothing(arrays):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    shared = share_over_devices(newton_schulz, "data")
    run = jax.shard_map(shared, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    stack = jnp.stack([jnp.asarray(arrays["g"])] * 3)
    np.testing.assert_array_equal(run(stack), newton_schulz(stack))
