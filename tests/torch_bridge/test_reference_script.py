"""The tests' PyTorch script gives the PyTorch reference's numbers, so that it can stand for it."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jgolf.torch_bridge import script  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"
SCRIPT = Path(__file__).parent / "reference_script.py"

SETTINGS = {
    "tie_embeddings": True,
    "tied_embed_init_std": 0.005,
    "logit_softcap": 30.0,
    "rope_base": 10000.0,
    "qk_gain_init": 1.5,
    "ln_scale": True,
    "ve_enabled": True,
}


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "tiny" / "model.npz")


@pytest.fixture
def module():
    with script.imported(SCRIPT, float32_only=True, on_cpu=True) as module:
        yield module


@pytest.fixture
def model(module, golden):
    model = module.GPT(**json.loads((GOLDEN / "tiny" / "config.json").read_text()), **SETTINGS)
    state = {name[7:]: torch.from_numpy(golden[name]) for name in golden.files if name.startswith("params/")}
    model.load_state_dict(state)
    return model


def ids(array):
    return torch.from_numpy(array).long()


def assert_close(found, expected, relative):
    scale = np.abs(expected).max()
    assert np.abs(found.detach().numpy() - expected).max() <= relative * scale


def test_logits(model, golden):
    assert_close(model.forward_logits(ids(golden["x"])), golden["logits"], 2e-5)
    assert_close(model.forward_logits(ids(golden["long_x"]))[:, -16:], golden["long_logits_last16"], 2e-5)


@pytest.mark.parametrize("prefix", ["", "qat_"])
def test_loss_and_gradients(module, model, golden, prefix):
    module.CastedLinear._qat_enabled = prefix == "qat_"
    loss = model.train()(ids(golden["x"]), ids(golden["y"]))
    loss.backward()
    assert loss.item() == pytest.approx(float(golden[prefix + "loss"]), rel=2e-5)
    for name, parameter in model.named_parameters():
        expected = golden[f"{prefix}grads/{name}"]
        apart = np.linalg.norm(parameter.grad.numpy() - expected)
        assert apart <= 2e-4 * np.linalg.norm(expected), name


def test_main_needs_a_gpu(module):
    with pytest.raises(RuntimeError, match="CUDA is required"):
        module.main()
