"""A training script with weight banks, looped layers and two lanes: one PyTorch file for GPUs, settings from the
environment, FlashAttention 3 and Triton kernels in training.

Written from the published method alone, not from jgolf; the tests compare the two.
"""

import glob
import math
import os

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import triton
import triton.language as tl
from flash_attn_interface import flash_attn_func as flash_attn_3_func
from flash_attn_interface import flash_attn_varlen_func
from torch import Tensor, nn
from triton.tools.tensor_descriptor import TensorDescriptor


class Hyperparameters:
    """Settings, each from its environment variable."""

    data_dir = os.environ.get("DATA_DIR", "./data/")
    iterations = int(os.environ.get("ITERATIONS", 20000))
    max_wallclock_seconds = float(os.environ.get("MAX_WALLCLOCK_SECONDS", 600.0))
    train_batch_tokens = int(os.environ.get("TRAIN_BATCH_TOKENS", 786432))
    train_seq_len = int(os.environ.get("TRAIN_SEQ_LEN", 2048))
    warmdown_frac = float(os.environ.get("WARMDOWN_FRAC", 0.85))
    min_lr = float(os.environ.get("MIN_LR", 0.1))
    vocab_size = int(os.environ.get("VOCAB_SIZE", 8192))
    num_layers = int(os.environ.get("NUM_LAYERS", 11))
    model_dim = int(os.environ.get("MODEL_DIM", 512))
    num_heads = int(os.environ.get("NUM_HEADS", 8))
    num_kv_heads = int(os.environ.get("NUM_KV_HEADS", 4))
    mlp_mult = float(os.environ.get("MLP_MULT", 4.0))
    tied_embed_init_std = float(os.environ.get("TIED_EMBED_INIT_STD", 0.005))
    logit_softcap = float(os.environ.get("LOGIT_SOFTCAP", 30.0))
    rope_base = float(os.environ.get("ROPE_BASE", 10000.0))
    rope_dims = int(os.environ.get("ROPE_DIMS", 16))
    rope_yarn = bool(int(os.environ.get("ROPE_YARN", "0")))
    qk_gain_init = float(os.environ.get("QK_GAIN_INIT", 5.0))
    xsa_last_n = int(os.environ.get("XSA_LAST_N", 11))
    ln_scale = bool(int(os.environ.get("LN_SCALE", "1")))
    num_loops = int(os.environ.get("NUM_LOOPS", 2))
    loop_start = int(os.environ.get("LOOP_START", 3))
    loop_end = int(os.environ.get("LOOP_END", 5))
    enable_looping_at = float(os.environ.get("ENABLE_LOOPING_AT", 0.35))
    parallel_start_layer = int(os.environ.get("PARALLEL_START_LAYER", 8))
    parallel_final_lane = os.environ.get("PARALLEL_FINAL_LANE", "mean")
    gate_window = int(os.environ.get("GATE_WINDOW", 12))
    sparse_attn_gate_scale = float(os.environ.get("SPARSE_ATTN_GATE_SCALE", 0.5))
    matrix_lr = float(os.environ.get("MATRIX_LR", 0.026))
    scalar_lr = float(os.environ.get("SCALAR_LR", 0.02))
    tied_embed_lr = float(os.environ.get("TIED_EMBED_LR", 0.03))
    muon_momentum = float(os.environ.get("MUON_MOMENTUM", 0.97))
    muon_momentum_warmup_start = float(os.environ.get("MUON_MOMENTUM_WARMUP_START", 0.92))
    muon_momentum_warmup_steps = int(os.environ.get("MUON_MOMENTUM_WARMUP_STEPS", 1500))
    muon_backend_steps = int(os.environ.get("MUON_BACKEND_STEPS", 5))
    muon_row_normalize = bool(int(os.environ.get("MUON_ROW_NORMALIZE", "1")))
    muon_wd = float(os.environ.get("MUON_WD", 0.095))
    adam_wd = float(os.environ.get("ADAM_WD", 0.02))
    embed_wd = float(os.environ.get("EMBED_WD", 0.085))
    beta1 = float(os.environ.get("BETA1", 0.9))
    beta2 = float(os.environ.get("BETA2", 0.99))
    adam_eps = float(os.environ.get("ADAM_EPS", 1e-8))
    grad_clip_norm = float(os.environ.get("GRAD_CLIP_NORM", 0.3))


# --- data ------------------------------------------------------------------------------------

BOS_ID = 1


def load_shard(path: str) -> Tensor:
    count = int(np.fromfile(path, dtype="<i4", count=3)[2])
    return torch.from_numpy(np.fromfile(path, dtype="<u2", count=count, offset=1024).astype(np.int64))


def document_bounds(inputs: Tensor, longest: int, multiple: int = 64) -> Tensor:
    """0, every BOS, every `longest` tokens of what lies between, and the end until there are a multiple of 64."""
    total = inputs.numel()
    starts = sorted({0, *torch.nonzero(inputs == BOS_ID).flatten().tolist()})
    ends = [*starts[1:], total]
    bounds = [cut for a, b in zip(starts, ends, strict=True) for cut in range(a, b, longest)] + [total]
    return torch.tensor(bounds + [total] * (-len(bounds) % multiple), dtype=torch.int32)


class DocumentLoader:
    """Rows of m + 1 tokens, each within a shard, from its first BOS on; documents are packed in them."""

    def __init__(self, pattern: str, rank: int, world_size: int):
        self.files, self.rank, self.world_size = sorted(glob.glob(pattern)), rank, world_size
        self.shard = -1
        self.open_next()

    def open_next(self) -> None:
        self.shard = (self.shard + 1) % len(self.files)
        self.tokens = load_shard(self.files[self.shard])
        self.cursor = int(torch.nonzero(self.tokens == BOS_ID)[0])

    def next_batch(self, tokens: int, longest: int) -> tuple[Tensor, Tensor, Tensor, int]:
        span = (tokens + 1) * self.world_size
        while self.cursor + span > self.tokens.numel():
            self.open_next()
        first = self.cursor + self.rank * (tokens + 1)
        row = self.tokens[first : first + tokens + 1]
        self.cursor += span
        return row[:-1][None], row[1:][None], document_bounds(row[:-1], longest), longest


# --- kernels ---------------------------------------------------------------------------------


@triton.jit
def linear_leaky_square_kernel(
    a_desc, b_desc, c_desc, aux_desc, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, FORWARD: tl.constexpr,
):  # fmt: skip
    """C = A Bᵀ, and its leaky ReLU squared; backwards C times the derivative at what was kept."""
    m, n = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    product = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        product = tl.dot(a_desc.load([m, k]), b_desc.load([n, k]).T, product)
    if FORWARD:
        leaky = tl.where(product > 0, product, 0.5 * product)
        c_desc.store([m, n], product.to(c_desc.dtype))
        aux_desc.store([m, n], (leaky * leaky).to(c_desc.dtype))
    else:
        kept = aux_desc.load([m, n]).to(tl.float32)
        c_desc.store([m, n], (product * tl.where(kept > 0, 2.0 * kept, 0.5 * kept)).to(c_desc.dtype))


def linear_leaky_square(a: Tensor, b: Tensor, kept: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """a [M, K], b [N, K]: the product and its activation, or with what was kept the product's gradient."""
    (M, K), N = a.shape, b.shape[0]
    c = torch.empty((M, N), device=a.device, dtype=a.dtype)
    aux = torch.empty_like(c) if kept is None else kept
    blocks = (128, 128, 64)
    descriptors = [
        TensorDescriptor.from_tensor(x, [blocks[i], blocks[j]]) for x, i, j in ((a, 0, 2), (b, 1, 2), (c, 0, 1))
    ]
    descriptors.append(TensorDescriptor.from_tensor(aux, [blocks[0], blocks[1]]))
    grid = (triton.cdiv(M, blocks[0]), triton.cdiv(N, blocks[1]))
    linear_leaky_square_kernel[grid](*descriptors, K, *blocks, FORWARD=kept is None, num_stages=4, num_warps=8)
    return (c, aux) if kept is None else c


class FusedLeakySquareMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        before, after = linear_leaky_square(rows, up)
        ctx.save_for_backward(rows, up, down, before, after)
        return (after @ down.T).view(x.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, up, down, before, after = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        inner = linear_leaky_square(flat, down.T.contiguous(), before)
        return (inner @ up).view(grad.shape), inner.T @ rows, flat.T @ after


fused_mlp = FusedLeakySquareMLP.apply


@triton.jit
def softcapped_loss_kernel(logits, targets, losses, sums, stride, V, softcap, BLOCK: tl.constexpr):
    """−z[target] + log Σ exp z of a row, z = 2·softcap·sigmoid(2·logit/softcap)."""
    row = tl.program_id(0).to(tl.int64)
    top, total = -float("inf"), 0.0
    for first in range(0, V, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(logits + row * stride + at, mask=at < V, other=-float("inf")).to(tl.float32)
        z = tl.where(at < V, 2.0 * softcap * tl.sigmoid(2.0 * x / softcap), -float("inf"))
        higher = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher), 0)
        top = higher
    x = tl.load(logits + row * stride + tl.load(targets + row)).to(tl.float32)
    tl.store(sums + row, top + tl.log(total))
    tl.store(losses + row, top + tl.log(total) - 2.0 * softcap * tl.sigmoid(2.0 * x / softcap))


@triton.jit
def softcapped_loss_backward_kernel(logits, targets, sums, grads, out, stride, V, softcap, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target, total, grad = tl.load(targets + row), tl.load(sums + row), tl.load(grads + row)
    for first in range(0, V, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(logits + row * stride + at, mask=at < V, other=0.0).to(tl.float32)
        s = tl.sigmoid(2.0 * x / softcap)
        p = tl.exp(2.0 * softcap * s - total) - tl.where(at == target, 1.0, 0.0)
        tl.store(out + row * stride + at, grad * p * 4.0 * s * (1.0 - s), mask=at < V)


@torch.library.custom_op("reference_script_1855::softcapped_loss", mutates_args=())
def softcapped_loss_op(logits: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    losses = torch.empty(logits.shape[0], device=logits.device, dtype=torch.float32)
    sums = torch.empty_like(losses)
    softcapped_loss_kernel[(logits.shape[0],)](
        logits, targets, losses, sums, logits.stride(0), logits.shape[1], softcap, BLOCK=1024
    )
    return losses, sums


@softcapped_loss_op.register_fake
def _(logits, targets, softcap):
    return tuple(logits.new_empty(logits.shape[0], dtype=torch.float32) for _ in range(2))


def _keep(ctx, inputs, output):
    logits, targets, ctx.softcap = inputs
    ctx.save_for_backward(logits, targets, output[1])


def _gradient(ctx, grads: Tensor, _):
    logits, targets, sums = ctx.saved_tensors
    out = torch.empty_like(logits)
    softcapped_loss_backward_kernel[(logits.shape[0],)](
        logits, targets, sums, grads.contiguous(), out, logits.stride(0), logits.shape[1], ctx.softcap, BLOCK=1024
    )
    return out, None, None


softcapped_loss_op.register_autograd(_gradient, setup_context=_keep)


# --- optimizer -------------------------------------------------------------------------------

POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


@torch.compile
def polar_express(gradient: Tensor, steps: int = 5, eps: float = 1e-7) -> Tensor:
    """Each matrix [outputs, inputs] of a bank, with singular values near 1."""
    x = gradient.bfloat16()
    tall = x.size(-2) > x.size(-1)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + eps)
    x = x.mT if tall else x
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum in bfloat16, rows normalized, orthogonalized; decoupled weight decay."""

    def __init__(self, params, lr, momentum, backend_steps, nesterov=True, weight_decay=0.0, row_normalize=False):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "backend_steps": backend_steps,
                "nesterov": nesterov,
                "weight_decay": weight_decay,
                "row_normalize": row_normalize,
            },
        )

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient, state = p.grad.bfloat16(), self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
                update = gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
                if group["row_normalize"]:
                    update = update / update.float().norm(dim=-1, keepdim=True).clamp_min(1e-7).to(update.dtype)
                update = polar_express(update, steps=group["backend_steps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                scale = max(1, p.shape[-2] / p.shape[-1]) ** 0.5
                p.add_(update.to(p.dtype), alpha=-group["lr"] * scale)


class Optimizers:
    """Banks by Muon, the embedding and all the rest by AdamW."""

    def __init__(self, h, base_model):
        banks = [base_model.qo_bank, base_model.kv_bank, base_model.mlp_up_bank, base_model.mlp_down_bank]
        taken = {id(p) for p in (*banks, base_model.tok_emb.weight)}
        scalars = [p for p in base_model.parameters() if id(p) not in taken]
        adam = {"betas": (h.beta1, h.beta2), "eps": h.adam_eps, "fused": True}
        self.optimizer_tok = torch.optim.AdamW(
            [{"params": [base_model.tok_emb.weight], "lr": h.tied_embed_lr, "base_lr": h.tied_embed_lr}],
            weight_decay=h.embed_wd,
            **adam,
        )
        self.optimizer_muon = Muon(
            banks,
            lr=h.matrix_lr,
            momentum=h.muon_momentum,
            backend_steps=h.muon_backend_steps,
            weight_decay=h.muon_wd,
            row_normalize=h.muon_row_normalize,
        )
        self.optimizer_scalar = torch.optim.AdamW(
            [{"params": scalars, "lr": h.scalar_lr, "base_lr": h.scalar_lr}], weight_decay=h.adam_wd, **adam
        )
        self.optimizers = [self.optimizer_tok, self.optimizer_muon, self.optimizer_scalar]

    def __iter__(self):
        return iter(self.optimizers)

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()


# --- network ---------------------------------------------------------------------------------


def rms(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


class Rotary(nn.Module):
    def __init__(self, dims: int, base: float):
        super().__init__()
        self.register_buffer("inv_freq", base ** (-torch.arange(0, dims, 2, dtype=torch.float32) / dims), False)

    def forward(self, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), self.inv_freq.float())
        return angles.cos()[None, :, None, :].to(dtype), angles.sin()[None, :, None, :].to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.size(-1)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)


class CausalSelfAttention(nn.Module):
    def __init__(self, h, use_xsa: bool):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = h.num_heads, h.num_kv_heads, h.model_dim // h.num_heads
        self.q_gain = nn.Parameter(torch.full((h.num_heads,), h.qk_gain_init))
        self.attn_gate_w = nn.Parameter(torch.zeros(h.num_heads, h.gate_window))
        self.gate_scale = h.sparse_attn_gate_scale
        self.rotary = Rotary(h.rope_dims or self.head_dim, h.rope_base)
        self.use_xsa = use_xsa

    def exclude_self(self, y: Tensor, v: Tensor) -> Tensor:
        v = F.normalize(v, dim=-1).repeat_interleave(self.num_heads // self.num_kv_heads, dim=2)
        return y - (y * v).sum(dim=-1, keepdim=True) * v

    def forward(self, n, q_w, k_w, v_w, out_w, cu_seqlens=None, max_seqlen=0) -> Tensor:
        batch, length, dim = n.shape
        q = F.linear(n, q_w.to(n.dtype)).view(batch, length, self.num_heads, self.head_dim)
        k = F.linear(n, k_w.to(n.dtype)).view(batch, length, self.num_kv_heads, self.head_dim)
        v = F.linear(n, v_w.to(n.dtype)).view(batch, length, self.num_kv_heads, self.head_dim)
        cos, sin = self.rotary(length, n.device, n.dtype)
        q, k = apply_rotary(rms(q), cos, sin), apply_rotary(rms(k), cos, sin)
        q = q * self.q_gain.to(q.dtype)[None, None, :, None]
        if cu_seqlens is None:
            y = flash_attn_3_func(q, k, v, causal=True)
        else:
            y = flash_attn_varlen_func(
                q[0],
                k[0],
                v[0],
                cu_seqlens_q=cu_seqlens,
                cu_seqlens_k=cu_seqlens,
                max_seqlen_q=max_seqlen,
                max_seqlen_k=max_seqlen,
                causal=True,
                window_size=(-1, -1),
            )[None]
        y = self.exclude_self(y, v) if self.use_xsa else y
        gate = F.linear(n[..., : self.attn_gate_w.size(1)], self.attn_gate_w.to(n.dtype))
        gate = torch.sigmoid(self.gate_scale * gate)
        return F.linear((y * gate[..., None]).reshape(batch, length, dim).to(n.dtype), out_w.to(n.dtype))


class MLP(nn.Module):
    use_fused = True

    def forward(self, x: Tensor, up_w: Tensor, down_w: Tensor) -> Tensor:
        up_w, down_w = up_w.to(x.dtype), down_w.to(x.dtype)
        if self.training and self.use_fused:
            return fused_mlp(x, up_w, down_w)
        return F.linear(F.leaky_relu(F.linear(x, up_w), negative_slope=0.5).square(), down_w)


class Block(nn.Module):
    def __init__(self, h, layer: int):
        super().__init__()
        self.attn = CausalSelfAttention(h, layer >= h.num_layers - h.xsa_last_n)
        self.mlp = MLP()
        self.factor = (layer + 1) ** -0.5 if h.ln_scale else 1.0
        self.attn_scale = nn.Parameter(torch.ones(h.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(h.model_dim))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(h.model_dim), torch.zeros(h.model_dim))))

    def mixed(self, x: Tensor, x0: Tensor) -> Tensor:
        mix = self.resid_mix.to(x.dtype)
        return mix[0] * x + mix[1] * x0

    def attended(self, x: Tensor, attn_w, cu_seqlens, max_seqlen) -> Tensor:
        update = self.attn(self.factor * rms(x), *attn_w, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)
        return self.attn_scale.to(x.dtype) * update

    def transformed(self, x: Tensor, mlp_w) -> Tensor:
        return self.mlp_scale.to(x.dtype) * self.mlp(self.factor * rms(x), *mlp_w)

    def forward(self, x: Tensor, x0: Tensor, attn_w, mlp_w, cu_seqlens=None, max_seqlen=0) -> Tensor:
        x = self.mixed(x, x0)
        x = x + self.attended(x, attn_w, cu_seqlens, max_seqlen)
        return x + self.transformed(x, mlp_w)


class GPT(nn.Module):
    def __init__(self, h):
        super().__init__()
        L, D, KV = h.num_layers, h.model_dim, h.num_kv_heads * (h.model_dim // h.num_heads)
        hidden = int(h.mlp_mult * D)
        self.num_layers, self.logit_softcap = L, h.logit_softcap
        self.tok_emb = nn.Embedding(h.vocab_size, D)
        self.qo_bank = nn.Parameter(torch.empty(2 * L, D, D))
        self.kv_bank = nn.Parameter(torch.empty(2 * L, KV, D))
        self.mlp_up_bank = nn.Parameter(torch.empty(L, hidden, D))
        self.mlp_down_bank = nn.Parameter(torch.empty(L, D, hidden))
        self.blocks = nn.ModuleList(Block(h, layer) for layer in range(L))
        order = list(range(h.loop_start)) + list(range(h.loop_start, h.loop_end + 1)) * (h.num_loops + 1)
        order = order + list(range(h.loop_end + 1, L)) if h.num_loops else list(range(L))
        half = len(order) // 2
        self.encoder_on, self.decoder_on = order[:half], order[half:]
        self.looping_active = False
        num_skips = min(half, len(order) - half)
        self.skip_weights = nn.Parameter(torch.ones(num_skips, D))
        self.skip_gates = nn.Parameter(torch.zeros(num_skips, D))
        self.parallel_start_layer = h.parallel_start_layer
        self.parallel_post_lambdas = nn.Parameter(torch.ones(L, 2, 2))
        self.parallel_resid_lambdas = nn.Parameter(torch.full((L, 2), 1.1))
        self.smear_gate = nn.Linear(h.gate_window, 1, bias=False)
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.init_weights(h.tied_embed_init_std)

    @torch.no_grad()
    def init_weights(self, std: float) -> None:
        L = self.num_layers
        nn.init.normal_(self.tok_emb.weight, std=std)
        nn.init.zeros_(self.smear_gate.weight)
        for layer in range(L):
            for matrix in (self.qo_bank[layer], self.kv_bank[layer], self.kv_bank[L + layer], self.mlp_up_bank[layer]):
                nn.init.orthogonal_(matrix)
            nn.init.zeros_(self.qo_bank[L + layer])
            nn.init.zeros_(self.mlp_down_bank[layer])

    def weights(self, layer: int) -> tuple:
        L = self.num_layers
        attn = self.qo_bank[layer], self.kv_bank[layer], self.kv_bank[L + layer], self.qo_bank[L + layer]
        return attn, (self.mlp_up_bank[layer], self.mlp_down_bank[layer])

    def smeared(self, input_ids: Tensor, e: Tensor) -> Tensor:
        here = e[:, 1:]
        gate = self.smear_lambda.to(e.dtype) * torch.sigmoid(self.smear_gate(here[..., : self.smear_gate.in_features]))
        gate = gate * (input_ids[:, 1:] != BOS_ID)[..., None]
        return torch.cat((e[:, :1], here + gate * e[:, :-1]), dim=1)

    def parallel_block(self, layer, a, m, x0, cu_seqlens, max_seqlen) -> tuple[Tensor, Tensor]:
        block, (attn_w, mlp_w) = self.blocks[layer], self.weights(layer)
        attn_out = block.attended(block.mixed(a, x0), attn_w, cu_seqlens, max_seqlen)
        mlp_out = block.transformed(m, mlp_w)
        resid = self.parallel_resid_lambdas[layer].to(a.dtype)
        post = self.parallel_post_lambdas[layer].to(a.dtype)
        return (
            resid[0] * a + post[0, 0] * attn_out + post[1, 0] * mlp_out,
            resid[1] * m + post[0, 1] * attn_out + post[1, 1] * mlp_out,
        )

    def forward_hidden(self, input_ids: Tensor, cu_seqlens=None, max_seqlen=0) -> Tensor:
        x0 = x = rms(self.smeared(input_ids, self.tok_emb(input_ids)))
        half = self.num_layers // 2
        encoder = self.encoder_on if self.looping_active else range(half)
        decoder = self.decoder_on if self.looping_active else range(half, self.num_layers)
        skips: list[Tensor] = []
        for layer in encoder:
            x = self.blocks[layer](x, x0, *self.weights(layer), cu_seqlens, max_seqlen)
            skips.append(x)
        lanes = None
        for k, layer in enumerate(decoder):
            if lanes is None and 0 < self.parallel_start_layer <= layer:
                lanes = (x, x)
            stream = x if lanes is None else lanes[0]
            if k < len(self.skip_weights) and skips:
                gate = torch.sigmoid(self.skip_gates[k].to(x.dtype))
                stream = gate * stream + (1 - gate) * (self.skip_weights[k].to(x.dtype) * skips.pop())
            if lanes is None:
                x = self.blocks[layer](stream, x0, *self.weights(layer), cu_seqlens, max_seqlen)
            else:
                lanes = self.parallel_block(layer, stream, lanes[1], x0, cu_seqlens, max_seqlen)
        return rms(x if lanes is None else (lanes[0] + lanes[1]) / 2)

    def forward_logits(self, input_ids: Tensor, cu_seqlens=None, max_seqlen=0) -> Tensor:
        logits = F.linear(self.forward_hidden(input_ids, cu_seqlens, max_seqlen), self.tok_emb.weight)
        return self.logit_softcap * torch.tanh(logits / self.logit_softcap)

    def forward(self, input_ids: Tensor, target_ids: Tensor, cu_seqlens=None, max_seqlen=0) -> Tensor:
        if self.training:
            x = self.forward_hidden(input_ids, cu_seqlens, max_seqlen)
            logits = F.linear(x, self.tok_emb.weight).flatten(0, 1)
            losses, _ = softcapped_loss_op(logits, target_ids.flatten(), self.logit_softcap)
            return losses.mean()
        logits = self.forward_logits(input_ids, cu_seqlens, max_seqlen)
        return F.cross_entropy(logits.flatten(0, 1).float(), target_ids.flatten())


# --- training --------------------------------------------------------------------------------


def restore_fp32_params(model: nn.Module) -> None:
    """All but the token embedding back to float32, their bfloat16-rounded values."""
    for name, parameter in model.named_parameters():
        if not name.startswith("tok_emb"):
            parameter.data = parameter.data.float()


def train_model(h, device: torch.device) -> nn.Module:
    base_model = GPT(h).to(device).bfloat16()
    restore_fp32_params(base_model)
    model = torch.compile(base_model, dynamic=False, fullgraph=True)
    optimizers = Optimizers(h, base_model)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    loader = DocumentLoader(os.path.join(h.data_dir, "fineweb_train_*.bin"), rank, world_size)
    for step in range(h.iterations):
        frac = step / h.iterations
        base_model.looping_active = bool(h.num_loops) and frac >= h.enable_looping_at
        scale = 1.0 if frac < 1 - h.warmdown_frac else max((1 - frac) / h.warmdown_frac, h.min_lr)
        batch = loader.next_batch(h.train_batch_tokens // world_size, h.train_seq_len)
        x, y, cu_seqlens = (part.to(device, non_blocking=True) for part in batch[:3])
        with torch.autocast(device_type="cuda", dtype=torch.bfloat16):
            loss = model(x, y, cu_seqlens=cu_seqlens, max_seqlen=batch[3])
        loss.backward()
        warm = min(step / h.muon_momentum_warmup_steps, 1.0)
        for group in optimizers.optimizer_muon.param_groups:
            group["momentum"] = (1 - warm) * h.muon_momentum_warmup_start + warm * h.muon_momentum
        torch.nn.utils.clip_grad_norm_(base_model.parameters(), h.grad_clip_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * group.setdefault("base_lr", group["lr"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if rank == 0 and not math.isfinite(loss.item()):
            raise RuntimeError(f"loss of step {step} is not finite")
    return base_model


def main() -> None:
    if not torch.cuda.is_available():
        raise RuntimeError("CUDA is required")
    h = Hyperparameters()
    if "RANK" in os.environ:
        dist.init_process_group("nccl")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    model = train_model(h, device)
    torch.save(model.state_dict(), "final_model.pt")


if __name__ == "__main__":
    main()
