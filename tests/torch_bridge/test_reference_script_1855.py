"""The tests' script of the family with weight banks gives that family's own numbers, so that it can stand for it."""

import copy
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jgolf.torch_bridge import kernels, script, source  # noqa: E402
from tests.pr1855 import FOLDER, MODEL, SETTINGS, arrays_of  # noqa: E402

SCRIPT = Path(__file__).parent / "reference_script_1855.py"
TOLERANCE, GRADIENT_TOLERANCE = 2e-5, 2e-4


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "model.npz") as file:
        return dict(file)


@pytest.fixture
def module():
    with kernels.replaced(), script.imported(SCRIPT, float32_only=True, on_cpu=True) as module:
        for name, value in SETTINGS.items():
            if hasattr(module.Hyperparameters, name):
                setattr(module.Hyperparameters, name, value)
        yield module


@pytest.fixture
def model(module, golden):
    """With rotary frequencies rounded, as the script's own training function leaves them."""
    model = module.GPT(module.Hyperparameters())
    state = {name[7:]: torch.from_numpy(golden[name]) for name in golden if name.startswith("params/")}
    model.load_state_dict(state)
    assert source.casts_model_to_bfloat16(module)
    script._cast_to_bfloat16(model)
    for block in model.blocks:
        np.testing.assert_allclose(block.attn.rotary.inv_freq.numpy(), golden["inv_freq"], rtol=1e-7)
    return model


def ids(array):
    return torch.from_numpy(np.asarray(array)).long()


def assert_close(found, expected, tolerance=TOLERANCE):
    assert np.abs(found.detach().numpy() - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("looped", [False, True])
def test_logits_loss_and_gradients(module, model, golden, looped):
    phase = "on" if looped else "off"
    model.looping_active = looped
    how = {"cu_seqlens": torch.from_numpy(golden["cu_seqlens"]), "max_seqlen": SETTINGS["train_seq_len"]}
    bounds = module.document_bounds(ids(golden["x"])[0], SETTINGS["train_seq_len"])
    np.testing.assert_array_equal(bounds, golden["cu_seqlens"])
    assert_close(model.eval().forward_hidden(ids(golden["x"]), **how), golden[f"hidden_{phase}"])
    assert_close(model.forward_logits(ids(golden["x"]), **how), golden[f"logits_{phase}"])
    loss = model.train()(ids(golden["x"]), ids(golden["y"]), **how)
    loss.backward()
    assert loss.item() == pytest.approx(float(golden[f"loss_{phase}"]), rel=TOLERANCE)
    for name, parameter in model.named_parameters():
        if f"grads_{phase}/{name}" in golden:
            expected = golden[f"grads_{phase}/{name}"]
            apart = np.linalg.norm(parameter.grad.numpy() - expected)
            assert apart <= GRADIENT_TOLERANCE * np.linalg.norm(expected), name
    model.eval()
    if looped:
        assert_close(model.forward_logits(ids(golden["dense_x"])), golden["dense_logits_on"])


def test_five_steps(module, model):
    """Batches, clipping, momentum, learning rates and optimizers, in float32, as its training function has them."""
    golden = np.load(FOLDER / "optimizer_f32.npz")
    start = {name: copy.deepcopy(value) for name, value in model.state_dict().items()}
    h = module.Hyperparameters()
    optimizers = module.Optimizers(h, model)
    loader = module.DocumentLoader(str(FOLDER / "train" / "fineweb_train_*.bin"), 0, 1)
    model.train()
    rates = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    for step in range(5):
        model.looping_active = bool(golden["looping"][step])
        model.zero_grad()
        for micro_step in range(2):
            x, y, bounds, longest = loader.next_batch(128, h.train_seq_len)
            np.testing.assert_array_equal(x[0], golden["x"][step, micro_step])
            np.testing.assert_array_equal(bounds, golden["cu"][step, micro_step])
            loss = model(x, y, bounds, longest)
            assert loss.item() == pytest.approx(golden["losses"][step, micro_step], rel=TOLERANCE)
            (loss / 2).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), h.grad_clip_norm)
        assert norm.item() == pytest.approx(golden["grad_norms"][step], rel=1e-5)
        for group, rate in rates:
            group["lr"] = rate * float(golden["scales"][step])
            if "momentum" in group:
                group["momentum"] = float(golden["momenta"][step])
        optimizers.step()
    for name, value in model.named_parameters():
        moved, expected = (value.detach().numpy() - start[name].numpy(), golden[f"after5/{name}"] - start[name].numpy())
        assert np.linalg.norm(moved - expected) <= 2e-3 * np.linalg.norm(expected), name


def test_orthogonalization_rounds_as_the_original():
    """In bfloat16, every operation's result rounded."""
    with script.imported(SCRIPT, float32_only=False, on_cpu=True) as module:
        golden = np.load(FOLDER / "newton_schulz.npz")
        for tag in ("square", "wide", "tall"):
            found = module.polar_express(torch.from_numpy(golden[f"{tag}/in"])).float().numpy()
            np.testing.assert_array_equal(found, golden[f"{tag}/bf16_steps5"])


def test_settings_are_those_of_the_golden_model(module):
    assert module.Hyperparameters.num_layers == MODEL.num_layers
    with pytest.raises(RuntimeError, match="CUDA is required"):
        module.main()


def test_golden_parameters_have_the_model_s_names(model):
    assert model.state_dict().keys() == arrays_of("model.npz", "params/").keys()
