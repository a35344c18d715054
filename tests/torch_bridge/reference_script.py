"""A training script as the challenge's participants have it: one PyTorch file, settings from the environment.

Written from the published method alone, not from jgolf; the tests compare the two.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from flash_attn_interface import flash_attn_func as flash_attn_3_func
from torch import Tensor, nn


class Hyperparameters:
    """Settings, each from its environment variable."""

    data_path = os.environ.get("DATA_PATH", "./data/datasets/fineweb10B_sp1024")
    iterations = int(os.environ.get("ITERATIONS", 20000))
    train_seq_len = int(os.environ.get("TRAIN_SEQ_LEN", 2048))
    vocab_size = int(os.environ.get("VOCAB_SIZE", 1024))
    num_layers = int(os.environ.get("NUM_LAYERS", 12))
    model_dim = int(os.environ.get("MODEL_DIM", 512))
    num_heads = int(os.environ.get("NUM_HEADS", 8))
    num_kv_heads = int(os.environ.get("NUM_KV_HEADS", 4))
    mlp_mult = float(os.environ.get("MLP_MULT", 3.0))
    tie_embeddings = bool(int(os.environ.get("TIE_EMBEDDINGS", "1")))
    tied_embed_init_std = float(os.environ.get("TIED_EMBED_INIT_STD", 0.005))
    rope_base = float(os.environ.get("ROPE_BASE", 10000.0))
    logit_softcap = float(os.environ.get("LOGIT_SOFTCAP", 30.0))
    qk_gain_init = float(os.environ.get("QK_GAIN_INIT", 1.5))
    bigram_vocab_size = int(os.environ.get("BIGRAM_VOCAB_SIZE", 10240))
    bigram_dim = int(os.environ.get("BIGRAM_DIM", 128))
    xsa_last_n = int(os.environ.get("XSA_LAST_N", 4))
    rope_dims = int(os.environ.get("ROPE_DIMS", 16))
    ln_scale = bool(int(os.environ.get("LN_SCALE", "1")))
    ve_enabled = bool(int(os.environ.get("VE_ENABLED", "1")))
    ve_dim = int(os.environ.get("VE_DIM", 128))
    ve_layers = os.environ.get("VE_LAYERS", "10,11")
    embed_lr = float(os.environ.get("EMBED_LR", 0.6))
    head_lr = float(os.environ.get("HEAD_LR", 0.008))
    tied_embed_lr = float(os.environ.get("TIED_EMBED_LR", 0.035))
    matrix_lr = float(os.environ.get("MATRIX_LR", 0.025))
    scalar_lr = float(os.environ.get("SCALAR_LR", 0.025))
    muon_momentum = float(os.environ.get("MUON_MOMENTUM", 0.99))
    muon_momentum_warmup_start = float(os.environ.get("MUON_MOMENTUM_WARMUP_START", 0.92))
    muon_momentum_warmup_steps = int(os.environ.get("MUON_MOMENTUM_WARMUP_STEPS", 1500))
    muon_backend_steps = int(os.environ.get("MUON_BACKEND_STEPS", 5))
    beta1 = float(os.environ.get("BETA1", 0.9))
    beta2 = float(os.environ.get("BETA2", 0.95))
    adam_eps = float(os.environ.get("ADAM_EPS", 1e-8))
    muon_wd = float(os.environ.get("MUON_WD", 0.04))
    adam_wd = float(os.environ.get("ADAM_WD", 0.04))
    grad_clip_norm = float(os.environ.get("GRAD_CLIP_NORM", 0.3))


# --- optimizer -------------------------------------------------------------------------------


def zeropower_via_newtonschulz5(gradient: Tensor, steps: int = 5, eps: float = 1e-7) -> Tensor:
    """Five steps towards the nearest matrix with orthogonal rows or columns."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.bfloat16()
    x = x / (x.norm() + eps)
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized; decoupled weight decay."""

    def __init__(self, params, lr, momentum, backend_steps, nesterov=True, weight_decay=0.0):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "backend_steps": backend_steps,
                "nesterov": nesterov,
                "weight_decay": weight_decay,
            },
        )

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(p.grad)
                update = p.grad.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
                update = zeropower_via_newtonschulz5(update, steps=group["backend_steps"])
                update = update * max(1, update.size(0) / update.size(1)) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.to(p.dtype), alpha=-group["lr"])


# --- network ---------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.size(-1),))


class CastedLinear(nn.Linear):
    """Keeps its weight in float32 and multiplies in the activations' type."""

    _qat_enabled = False
    qat_levels = 31

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if CastedLinear._qat_enabled and self.training:
            with torch.no_grad():
                top = self.qat_levels
                scale = (weight.abs().amax(dim=1, keepdim=True) / top).clamp_min(1 / top)
                rounded = (weight / scale).round().clamp(-top - 1, top) * scale
            weight = weight + (rounded - weight).detach()
        return F.linear(x, weight.to(x.dtype))


class Rotary(nn.Module):
    def __init__(self, dim: int, base: float, train_seq_len: int = 1024):
        super().__init__()
        self.dim, self.base, self.train_seq_len = dim, base, train_seq_len

    def forward(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        base = self.base
        if length > self.train_seq_len:
            base = base * (length / self.train_seq_len) ** (self.dim / (self.dim - 2))
        powers = torch.arange(0, self.dim, 2, dtype=torch.float32, device=device) / self.dim
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), 1.0 / base**powers)
        return angles.cos()[None, :, None, :], angles.sin()[None, :, None, :]


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.size(-1)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)


class CausalSelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, rope_base: float, qk_gain_init: float):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, dim // num_heads
        self.c_q = CastedLinear(dim, dim, bias=False)
        self.c_k = CastedLinear(dim, num_kv_heads * self.head_dim, bias=False)
        self.c_v = CastedLinear(dim, num_kv_heads * self.head_dim, bias=False)
        self.proj = CastedLinear(dim, dim, bias=False)
        self.q_gain = nn.Parameter(torch.full((num_heads,), qk_gain_init))
        self.rotary = Rotary(self.head_dim, rope_base)
        self.use_xsa = False

    def exclude_self(self, y: Tensor, v: Tensor) -> Tensor:
        v = F.normalize(v, dim=-1).repeat_interleave(self.num_heads // self.num_kv_heads, dim=2)
        return y - (y * v).sum(dim=-1, keepdim=True) * v

    def forward(self, x: Tensor, v_embed: Tensor | None) -> Tensor:
        batch, length, dim = x.shape
        q = self.c_q(x).reshape(batch, length, self.num_heads, self.head_dim)
        k = self.c_k(x).reshape(batch, length, self.num_kv_heads, self.head_dim)
        v = self.c_v(x)
        v = v if v_embed is None else v + v_embed
        v = v.reshape(batch, length, self.num_kv_heads, self.head_dim)
        q, k = F.rms_norm(q, (self.head_dim,)), F.rms_norm(k, (self.head_dim,))
        cos, sin = self.rotary(length, x.device)
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        q = q * self.q_gain.to(q.dtype)[None, None, :, None]
        y = flash_attn_3_func(q, k, v, causal=True)
        y = self.exclude_self(y, v) if self.use_xsa else y
        return self.proj(y.reshape(batch, length, dim))


class MLP(nn.Module):
    def __init__(self, dim: int, mlp_mult: float):
        super().__init__()
        self.fc = CastedLinear(dim, int(mlp_mult * dim), bias=False)
        self.proj = CastedLinear(int(mlp_mult * dim), dim, bias=False)
        self.fc.qat_levels = self.proj.qat_levels = 15

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.relu(self.fc(x)).square())


class SmearGate(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate).to(x.dtype)
        return (1 - gate) * x + gate * F.pad(x, (0, 0, 1, 0))[:, :-1]


class ProjectedTable(nn.Module):
    """A table of small rows, a projection where the target is wider, and a scale."""

    def __init__(self, rows: int, dim: int, target_dim: int, scale: float, std: float):
        super().__init__()
        self.embed = nn.Embedding(rows, dim)
        nn.init.normal_(self.embed.weight, std=std)
        self.proj = CastedLinear(dim, target_dim, bias=False) if dim != target_dim else None
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x if self.proj is None else self.proj(x)
        return x * self.scale.to(x.dtype)


class BigramHashEmbedding(ProjectedTable):
    def forward(self, ids: Tensor) -> Tensor:
        ids, modulus = ids.to(torch.int32), self.embed.num_embeddings - 1
        hashed = torch.full_like(ids, modulus)
        hashed[:, 1:] = torch.bitwise_xor(36313 * ids[:, 1:], 27191 * ids[:, :-1]) % modulus
        return super().forward(hashed.long())


class Block(nn.Module):
    def __init__(self, dim, num_heads, num_kv_heads, mlp_mult, rope_base, qk_gain_init, norm_factor):
        super().__init__()
        self.attn = CausalSelfAttention(dim, num_heads, num_kv_heads, rope_base, qk_gain_init)
        self.mlp = MLP(dim, mlp_mult)
        self.norm = RMSNorm()
        self.norm_factor = norm_factor
        self.attn_scale = nn.Parameter(torch.ones(dim))
        self.mlp_scale = nn.Parameter(torch.ones(dim))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(dim), torch.zeros(dim))))

    def forward(self, x: Tensor, x0: Tensor, v_embed: Tensor | None = None) -> Tensor:
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        x = x + self.attn_scale.to(x.dtype) * self.attn(self.norm(x) * self.norm_factor, v_embed)
        return x + self.mlp_scale.to(x.dtype) * self.mlp(self.norm(x) * self.norm_factor)


class GPT(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        num_layers: int,
        model_dim: int,
        num_heads: int,
        num_kv_heads: int,
        mlp_mult: float,
        tie_embeddings: bool,
        tied_embed_init_std: float,
        logit_softcap: float,
        rope_base: float,
        qk_gain_init: float,
        mtp_num_heads: int = 0,
        mtp_loss_weight: float = 0.1,
        bigram_vocab_size: int = 0,
        bigram_dim: int = 128,
        xsa_last_n: int = 0,
        rope_dims: int = 0,
        ln_scale: bool = False,
        dtg: bool = False,
        ve_enabled: bool = False,
        ve_dim: int = 128,
        ve_layers: str = "9,10",
    ):
        super().__init__()
        if mtp_num_heads or dtg:
            raise ValueError("further prediction heads and depth gates are not part of this script")
        kv_dim = num_kv_heads * (model_dim // num_heads)
        self.logit_softcap = logit_softcap
        self.tok_emb = nn.Embedding(vocab_size, model_dim)
        nn.init.normal_(self.tok_emb.weight, std=tied_embed_init_std)
        self.bigram = None
        if bigram_vocab_size > 0:
            self.bigram = BigramHashEmbedding(bigram_vocab_size, bigram_dim, model_dim, 0.05, 0.0)
        self.smear = SmearGate(model_dim)
        self.num_encoder_layers = num_layers // 2
        self.skip_weights = nn.Parameter(torch.ones(self.num_encoder_layers, model_dim))
        self.blocks = nn.ModuleList(
            Block(
                model_dim,
                num_heads,
                num_kv_heads,
                mlp_mult,
                rope_base,
                qk_gain_init,
                (layer + 1) ** -0.5 if ln_scale else 1.0,
            )
            for layer in range(num_layers)
        )
        for block in self.blocks:
            block.attn.rotary.dim = rope_dims or block.attn.head_dim
        for block in self.blocks[max(0, num_layers - xsa_last_n) :]:
            block.attn.use_xsa = True
        self.ve_layer_indices = [int(layer) for layer in ve_layers.split(",") if layer.strip()] if ve_enabled else []
        self.ve_shared = ProjectedTable(vocab_size, ve_dim, kv_dim, 0.1, 0.01) if self.ve_layer_indices else None
        self.ve_layer_scales = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in self.ve_layer_indices])
        self.final_norm = RMSNorm()
        self.lm_head = None if tie_embeddings else CastedLinear(model_dim, vocab_size, bias=False)

    def value_embedding(self, layer: int, values: Tensor | None) -> Tensor | None:
        if layer not in self.ve_layer_indices:
            return None
        return self.ve_layer_scales[self.ve_layer_indices.index(layer)].to(values.dtype) * values

    def forward_logits(self, input_ids: Tensor) -> Tensor:
        x = self.tok_emb(input_ids)
        if self.bigram is not None:
            x = x + self.bigram(input_ids)
        x0 = x = self.smear(F.rms_norm(x, (x.size(-1),)))
        values = self.ve_shared(input_ids) if self.ve_shared is not None else None
        skips: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            if layer >= self.num_encoder_layers and skips:
                x = x + self.skip_weights[layer - self.num_encoder_layers].to(x.dtype) * skips.pop()
            x = block(x, x0, self.value_embedding(layer, values))
            if layer < self.num_encoder_layers:
                skips.append(x)
        x = self.final_norm(x)
        logits = F.linear(x, self.tok_emb.weight.to(x.dtype)) if self.lm_head is None else self.lm_head(x)
        return self.logit_softcap * torch.tanh(logits / self.logit_softcap)

    def forward(self, input_ids: Tensor, target_ids: Tensor) -> Tensor:
        logits = self.forward_logits(input_ids)
        return F.cross_entropy(logits.flatten(0, 1).float(), target_ids.flatten())


def main() -> None:
    args = Hyperparameters()
    if not torch.cuda.is_available():
        raise RuntimeError("CUDA is required")
    dist.init_process_group("nccl")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))

    def log(text: str) -> None:
        print(text, flush=True)

    base_model = GPT(
        vocab_size=args.vocab_size,
        num_layers=args.num_layers,
        model_dim=args.model_dim,
        num_heads=args.num_heads,
        num_kv_heads=args.num_kv_heads,
        mlp_mult=args.mlp_mult,
        tie_embeddings=args.tie_embeddings,
        tied_embed_init_std=args.tied_embed_init_std,
        logit_softcap=args.logit_softcap,
        rope_base=args.rope_base,
        qk_gain_init=args.qk_gain_init,
        bigram_vocab_size=args.bigram_vocab_size,
        bigram_dim=args.bigram_dim,
        xsa_last_n=args.xsa_last_n,
        rope_dims=args.rope_dims,
        ln_scale=args.ln_scale,
        ve_enabled=args.ve_enabled,
        ve_dim=args.ve_dim,
        ve_layers=args.ve_layers,
    ).to(device)
    model = torch.compile(base_model)
    log(f"parameters:{sum(p.numel() for p in model.parameters())}")

    # Matrices of the blocks and of the tables by Muon, the tables, the head and all the rest by Adam.
    in_blocks = dict(base_model.blocks.named_parameters())
    matrices = [p for name, p in in_blocks.items() if p.ndim == 2 and "resid_mix" not in name]
    scalars = [p for name, p in in_blocks.items() if p.ndim < 2 or "resid_mix" in name]
    scalars.append(base_model.smear.gate)
    if base_model.skip_weights.numel() > 0:
        scalars.append(base_model.skip_weights)
    token_lr = args.tied_embed_lr if args.tie_embeddings else args.embed_lr
    tables = [{"params": [base_model.tok_emb.weight], "lr": token_lr}]
    for table in (base_model.bigram, base_model.ve_shared):
        if table is not None:
            tables.append({"params": [table.embed.weight], "lr": token_lr})
            scalars.append(table.scale)
            if table.proj is not None:
                matrices.append(table.proj.weight)
    scalars.extend(base_model.ve_layer_scales)
    adam = {"betas": (args.beta1, args.beta2), "eps": args.adam_eps, "fused": True}
    optimizer_tables = torch.optim.AdamW(tables, weight_decay=args.adam_wd, **adam)
    optimizer_muon = Muon(
        matrices,
        lr=args.matrix_lr,
        momentum=args.muon_momentum,
        backend_steps=args.muon_backend_steps,
        weight_decay=args.muon_wd,
    )
    optimizer_scalars = torch.optim.AdamW(
        [{"params": scalars, "lr": args.scalar_lr}], weight_decay=args.adam_wd, **adam
    )
    optimizers = [optimizer_tables, optimizer_muon, optimizer_scalars]
    if base_model.lm_head is not None:
        log("the head is untied")
        optimizers.append(torch.optim.Adam([{"params": [base_model.lm_head.weight], "lr": args.head_lr}], **adam))
    for _ in range(args.iterations):
        torch.nn.utils.clip_grad_norm_(base_model.parameters(), args.grad_clip_norm)
        for optimizer in optimizers:
            optimizer.step()


if __name__ == "__main__":
    main()
