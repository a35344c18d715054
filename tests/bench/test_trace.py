"""Kernels by kind, and their sums."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jgolf.bench.trace import OTHER, Kernel, covered, kind_of, of_collectives, own_kernels, profile, summed

OWN = frozenset({"mixed_forward", "sum_sorted", "attention_backward"})


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128": "attention forward",
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_27_64x128": "attention backward",
        "void cudnn::fusion::compute_dot_do_o_specialized<true, __nv_bfloat16>": "attention backward",
        "void cudnn::fusion::fmha_reduce_head<true>(void const*, void*)": "attention backward",
        "nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT": "matrix products",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816>": "matrix products",
        "cublasLt::splitKreduce_kernel<32, 16>": "matrix products",
        "gemm_fusion_dot_general_12": "matrix products",
        "dot.3": "matrix products",
        "loop_add_fusion_3": "other fusions",
        "input_multiply_reduce_fusion_2": "other fusions",
        "wrapped_convert": "other fusions",
        "MemcpyD2D": "copies",
        "loop_transpose_fusion_1": "copies",
        "wrapped_copy.2": "copies",
        "void cub::DeviceRadixSortOnesweepKernel<int>": "sorts",
        "ncclDevKernel_AllReduce_Sum_f32_RING_LL": "collectives",
        "mixed_forward": "own: mixed_forward",
        "mixed_forward_4": "own: mixed_forward",
        "mixed_forward__1": "own: mixed_forward",
        "sum_sorted.1": "own: sum_sorted",
        "attention_backward": "own: attention_backward",
        "product_then_relu_squared_mosaic_gpu_kernel": "own: product_then_relu_squared",
        "redzone_checker": OTHER,
    }.items(),
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name, OWN) == kind


def test_sums() -> None:
    events = [("nvjet_a", 2e6), ("loop_fusion_1", 3e6), ("loop_fusion_2", 1e6), ("nvjet_b", 8e6)]
    found = summed(events, calls=2)
    assert found.device_ms == 7.0
    assert found.kernels[0] == Kernel("nvjet_b", "matrix products", 4.0, 0.5)
    assert Kernel("loop_fusion", "other fusions", 2.0, 1.0) in found.kernels
    assert [(kind.name, kind.ms, kind.count) for kind in found.by_kind()] == [
        ("matrix products", 5.0, 1.0),
        ("other fusions", 2.0, 1.0),
    ]


def test_what_of_the_collectives_is_not_hidden() -> None:
    """Against a clock of whole nanoseconds, each of which is looked at."""
    rng = np.random.default_rng(0)
    executions, running = [], {"ncclDevKernel_AllReduce": np.zeros(300, bool), "nvjet_a": np.zeros(300, bool)}
    for name in [*running] * 12:
        start = int(rng.integers(280))
        end = start + int(rng.integers(20))
        running[name][start:end] = True
        executions.append((name, float(start), float(end)))
    collective, other = running.values()
    assert of_collectives(executions) == (collective.sum(), (collective & ~other).sum())
    assert 0 < (collective & ~other).sum() < collective.sum()
    assert covered([]) == 0


def on_a_gpu() -> contextlib.AbstractContextManager:
    """From 0.11 on, JAX lowers Triton kernels for a GPU that it knows only."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "cuda")
    manual = (jax.sharding.AxisType.Manual,)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), axis_types=manual, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def test_own_kernels_are_found_in_a_program() -> None:
    def double(source, target):
        target[...] = 2 * source[...]

    def run(x):
        def call(name):
            shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
            parameters = triton.CompilerParams(num_warps=2, num_stages=1)
            return pl.pallas_call(double, out_shape=shape, compiler_params=parameters, name=name)

        return call("doubled_again_2")(jnp.tanh(call("doubled")(x)))

    with on_a_gpu():
        lowered = jax.jit(run).trace(jax.ShapeDtypeStruct((16, 64), jnp.float32)).lower(lowering_platforms=("cuda",))
    assert own_kernels(lowered.compiler_ir("hlo").as_hlo_text()) == {"doubled", "doubled_again"}


def test_a_trace_on_this_machine() -> None:
    product = jax.jit(lambda x: jnp.sin(x @ x))
    x = jax.random.normal(jax.random.key(0), (256, 256))
    found = profile(lambda: product(x), calls=2)
    assert found.device_ms > 0
    assert all(kernel.count == 1 for kernel in found.kernels)
