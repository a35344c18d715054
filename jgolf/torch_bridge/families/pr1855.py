"""Pull request #1855: all matrices of the blocks in four banks."""

from jgolf.torch_bridge.families.common import COMMON_NAMES, Bank, Family

FAMILY = Family(
    recipe="pr1855",
    names={
        **COMMON_NAMES,
        "gated_smear/gate": "smear_gate.weight",
        "gated_smear/scale": "smear_lambda",
        "skip_gates": "skip_gates",
        "lanes/residual": "parallel_resid_lambdas",
        "lanes/post": "parallel_post_lambdas",
        "blocks/{}/attn/gate": "blocks.{}.attn.attn_gate_w",
    },
    banks=(
        Bank("qo_bank", ("blocks/{}/attn/q_proj/kernel", "blocks/{}/attn/out_proj/kernel")),
        Bank("kv_bank", ("blocks/{}/attn/k_proj/kernel", "blocks/{}/attn/v_proj/kernel")),
        Bank("mlp_up_bank", ("blocks/{}/mlp/up_proj/kernel",)),
        Bank("mlp_down_bank", ("blocks/{}/mlp/down_proj/kernel",)),
    ),
    untold=(*Family.untold, "rope_frequency_dtype", "activation_slope"),
)
