"""The challenge's baseline and what grew from it, pull requests #414 and #592: a tensor for every parameter."""

from jgolf.torch_bridge.families.common import COMMON_NAMES, Family

FAMILY = Family(
    recipe="pr592",
    names={
        **COMMON_NAMES,
        "smear/gate": "smear.gate",
        "bigram/embedding": "bigram.embed.weight",
        "bigram/proj/kernel": "bigram.proj.weight",
        "bigram/scale": "bigram.scale",
        "value_embed/embedding": "ve_shared.embed.weight",
        "value_embed/proj/kernel": "ve_shared.proj.weight",
        "value_embed/scale": "ve_shared.scale",
        "value_embed/layer_scales/{}": "ve_layer_scales.{}",
    },
)
