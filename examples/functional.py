# %% [markdown]
# # Parameter Golf in pure functions
#
# A model is its settings and a flat dictionary of arrays. So several models are a dictionary of arrays with one
# more axis, a gradient for each example is `vmap(grad(loss))`, and a Hessian times a vector is the `grad` of a `grad`.
#
# Run it as a script (`python examples/functional.py`, a minute or two on a laptop) or cell by cell: editors that know
# the `# %%` format, and jupytext, open it as a notebook.

# %%
import dataclasses
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jgolf import api
from jgolf import config as configs
from jgolf.config.parts import compose
from jgolf.data.batches import BatchOrder
from jgolf.data.shards import TokenStream, find_shards
from jgolf.data.tokenizer import find_tokenizer, load_tokenizer

# %% [markdown]
# ## Text to tokens
#
# The demo corpus is made of Python's own documentation; nothing is downloaded. A batch is a function of the step.

# %%
DATA = "data/demo"
subprocess.run([sys.executable, "-m", "jgolf", "data", "demo", "--out", DATA], check=True)
tokenizer = load_tokenizer(find_tokenizer(DATA))
train_stream, val_stream = (TokenStream(find_shards(DATA, split)) for split in ("train", "val"))

config = compose(
    "example",
    configs.load("pr592"),  # a recipe; Config() has no technique at all
    {
        "model.num_layers": 2,
        "model.model_dim": 64,
        "model.num_heads": 2,
        "model.num_kv_heads": 1,
        "model.bigram_buckets": 256,
        "model.bigram_dim": 32,
        "model.xsa_layers": (-1,),
        "model.value_embedding_layers": (-1,),
        "model.value_embedding_dim": 32,
        "model.orthogonal_init": False,
        "model.compute_dtype": "float32",
        "model.kernels": "plain",  # ordinary JAX on a GPU, too: it can be differentiated twice
        "optim.muon.momentum": 0.9,
        "optim.muon.momentum_warmup_steps": 0,
        "average.ema_decay": 0.9,
        "train.steps": 60,
        "train.time_cap_s": 0.0,
        "train.warmdown_steps": 30,
        "train.batch_tokens": 1024,
        "train.seq_len": 128,
        "train.num_ranks": 1,
    },
)
model = config.model
order = BatchOrder.from_config(config.train)


def batch(stream: TokenStream, step: int) -> api.Batch:
    """Sequences [rows, time] of one step."""
    inputs, targets = order.rows(stream, step, slice(None))
    return api.Batch(*(jnp.asarray(part[0], jnp.int32) for part in (inputs, targets)))


# %% [markdown]
# ## Four runs in one program
#
# Two seeds times two learning rates. The step is written for one run; `vmap` makes it one for all. The learning rate
# is an argument, so the settings are completed inside the traced function.

# %%
seeds, rates = (0, 1), (0.01, 0.03)
keys = jnp.stack([jax.random.key(seed) for seed in seeds for _ in rates])
learning_rates = jnp.array(rates * len(seeds))


def step(rate, state, batch):
    settings = configs.replace(config, "optim.muon.learning_rate", rate)
    return api.train_step(settings, state, batch)


states = jax.vmap(partial(api.init_state, config))(jax.jit(partial(api.init_many, model))(keys))
step_all = jax.jit(jax.vmap(step, in_axes=(0, 0, None)), donate_argnums=1)
for index in range(config.train.steps):
    states, metrics = step_all(learning_rates, states, batch(train_stream, index))
    if (index + 1) % 20 == 0:
        print(f"step {index + 1}: loss of each run", np.asarray(metrics.loss).round(3).tolist())

# %% [markdown]
# ## Choose the best by bits per byte
#
# The loss is in nats a token. The tokenizer knows how many bytes each token stands for.

# %%
val = batch(val_stream, 0)
val_losses = jax.jit(jax.vmap(partial(api.loss, model), in_axes=(0, None, None)))(states.ema, *val)
val_bytes = int(tokenizer.target_bytes(np.ravel(val.inputs), np.ravel(val.targets)).sum())
val_bpb = [api.bits_per_byte(float(loss), val.targets.size, val_bytes) for loss in val_losses]
for key_rate, bpb in zip([(seed, rate) for seed in seeds for rate in rates], val_bpb, strict=True):
    print(f"seed {key_rate[0]}, learning rate {key_rate[1]}: {bpb:.4f} bits per byte")
best = int(np.argmin(val_bpb))
params = {path: value[best] for path, value in states.ema.items()}

# %% [markdown]
# ## Which sequences pull hardest? A gradient for each example
#
# `loss` takes one sequence as well as a batch, so the gradient of every sequence is a `vmap` away.

# %%
per_example = jax.vmap(jax.grad(partial(api.loss, model)), in_axes=(None, 0, 0))


@jax.jit
def gradient_norms(params, inputs, targets):
    squares = jax.tree.map(lambda g: jnp.sum(g**2, axis=range(1, g.ndim)), per_example(params, inputs, targets))
    return jnp.sqrt(sum(jax.tree.leaves(squares)))


norms = gradient_norms(params, *val)
print("gradient norm of each sequence", np.asarray(norms).round(3).tolist())
print("the hardest puller:", tokenizer.decode(np.asarray(val.inputs[int(jnp.argmax(norms))]).tolist())[:200])

# %% [markdown]
# ## How curved is the loss along its own gradient?
#
# A Hessian times a vector is the gradient of the gradient's dot product with it: no Hessian in memory.


# %%
def dot(a, b):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))


@jax.jit
def curvature_along_gradient(params):
    gradient = jax.grad(lambda params: api.loss(model, params, *val))
    direction = gradient(params)
    product = jax.grad(lambda params: dot(gradient(params), direction))(params)
    return dot(direction, product) / dot(direction, direction)


curvature = curvature_along_gradient(params)
print(f"curvature along the gradient: {float(curvature):.3f}")

# %% [markdown]
# ## Quantize, pack, and score what was packed
#
# Fewer bits, fewer bytes, more loss: one line a choice.

# %%
val_loss = jax.jit(partial(api.loss, model))
sizes = {}
for form in ("int8", "int6", "int4"):
    rules = dataclasses.replace(config.quantize, mlp=form, attention=form, small_size=1024)
    data = api.pack(api.quantize(params, rules), {"made by": "examples/functional.py"})
    stored, metadata = api.unpack(data)
    bpb = api.bits_per_byte(float(val_loss(api.dequantize(stored), *val)), val.targets.size, val_bytes)
    sizes[form] = len(data)
    print(f"{form}: {len(data):,} bytes, {bpb:.4f} bits per byte")
