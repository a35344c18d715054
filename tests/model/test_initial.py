import dataclasses
import json

import jax
import numpy as np
import pytest

from jgolf.model.functional import parameter_shapes
from jgolf.model.initial import init
from jgolf.torch_bridge.names import from_params, torch_name
from tests.conftest import RECIPE
from tests.pr1855 import FOLDER, RECORD

jitted_init = jax.jit(init, static_argnums=0)

CONFIG = dataclasses.replace(
    RECIPE.model,
    num_layers=4,
    model_dim=128,
    num_heads=2,
    num_kv_heads=1,
    bigram_buckets=300,
    xsa_layers=(),
    value_embedding_layers=(1, 2),
    tie_embeddings=False,
)


@pytest.fixture(scope="module")
def params():
    return {path: np.asarray(value) for path, value in jitted_init(CONFIG, jax.random.key(3)).items()}


def test_shapes_and_type(params):
    assert {path: value.shape for path, value in params.items()} == parameter_shapes(CONFIG)
    assert all(value.dtype == np.float32 for value in params.values())


def test_matrices_are_orthogonal_and_those_that_write_zero(params):
    for path, value in params.items():
        if not path.endswith("/kernel"):
            continue
        if path.endswith(("out_proj/kernel", "down_proj/kernel")) or path == "head/kernel":
            assert not value.any()
            continue
        short = value if value.shape[0] <= value.shape[1] else value.T
        gain = 1.0 if path.startswith("blocks/") else 1 / np.sqrt(2 * CONFIG.num_layers)
        np.testing.assert_allclose(short @ short.T, gain**2 * np.eye(len(short)), atol=1e-5)


def test_tables_and_constants(params):
    assert params["embed/embedding"].std() == pytest.approx(0.005, rel=0.02)
    assert params["value_embed/embedding"].std() == pytest.approx(0.01, rel=0.02)
    assert not params["bigram/embedding"].any()
    assert params["bigram/scale"] == pytest.approx(0.05)
    assert params["value_embed/scale"] == pytest.approx(0.1)
    assert (params["blocks/1/attn/q_gain"] == 1.5).all()


def test_vectors_start_where_the_reference_s_do(golden, tiny):
    expected = json.loads((golden / "tiny" / "init_stats.json").read_text())
    for path, value in jitted_init(tiny, jax.random.key(0)).items():
        stats = expected[torch_name(path)]
        assert list(value.shape[::-1] if path.endswith("/kernel") else value.shape) == stats["shape"]
        if not path.endswith(("/kernel", "/embedding")):
            np.testing.assert_allclose(float(value.mean()), stats["mean"], rtol=1e-6)


def test_depends_on_the_key_and_the_path_alone(params):
    again = jitted_init(CONFIG, jax.random.key(3))
    deeper = jitted_init(dataclasses.replace(CONFIG, num_layers=6), jax.random.key(3))
    other = jitted_init(CONFIG, jax.random.key(4))
    path = "blocks/2/attn/q_proj/kernel"
    np.testing.assert_array_equal(again[path], params[path])
    np.testing.assert_allclose(deeper[path], params[path], atol=1e-6)
    assert np.abs(other[path] - params[path]).max() > 0.01


def test_a_start_that_is_not_orthogonal_is_pytorch_s():
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(CONFIG, orthogonal_init=False)
    found = jitted_init(config, jax.random.key(0))
    for path, inputs, outputs in (("blocks/0/mlp/up_proj/kernel", 128, 384), ("blocks/0/attn/k_proj/kernel", 128, 64)):
        theirs = torch.nn.Linear(inputs, outputs, bias=False).weight.detach().numpy()
        value = np.asarray(found[path])
        assert value.std() == pytest.approx(theirs.std(), rel=0.03)
        assert value.std() == pytest.approx(1 / np.sqrt(3 * inputs), rel=0.02)
        assert np.abs(value).max() == pytest.approx(np.abs(theirs).max(), rel=0.01)
    assert not found["head/kernel"].any()


@pytest.mark.slow
def test_the_record_s_start_in_its_real_size():
    """Statistics of a fresh model of its script, all of whose values are rounded to bfloat16."""
    expected = json.loads((FOLDER / "init_stats_real.json").read_text())
    params = jitted_init(RECORD.model, jax.random.key(0))
    state = from_params({path: np.asarray(value) for path, value in params.items()})
    assert state.keys() == {name for name in expected if not name.startswith("_")}
    for name, value in state.items():
        stats = expected[name]
        assert list(value.shape) == stats["shape"]
        np.testing.assert_allclose(value.std(), stats["std"], rtol=3e-3, err_msg=name)
        np.testing.assert_allclose(value.mean(), stats["mean"], rtol=1e-6, atol=1e-3 * stats["std"], err_msg=name)
        if not stats["std"]:
            assert (value.min(), value.max()) == (stats["min"], stats["max"])
        for number, (least, most) in enumerate(stats.get("singular_values_min_max_per_matrix", ())):
            matrix = value[number] if value.shape[1] <= value.shape[2] else value[number].T
            square = matrix @ matrix.T
            np.testing.assert_allclose(square, round(most) * np.eye(len(square)), atol=5e-3, err_msg=f"{name} {number}")
            assert abs(least - round(most)) < 5e-3
