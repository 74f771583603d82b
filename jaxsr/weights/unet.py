"""The names of a `LatentUNet`'s parameters in published files: those of diffusers, and the original ones of `ldm`.

diffusers numbers blocks by level, the original by their order on either way: `input_blocks.0` is the stem, and changes of resolution count
(down) or belong to the last block of a level (up). Within a transformer both have the same names. Kernels turn as `weights/pytorch.py`
says; in Stable Diffusion v1 the projections into and out of a transformer are 1 × 1 convolutions, in both.
"""

from collections.abc import Mapping

from jaxsr.models.unet import LatentUNet
from jaxsr.weights.pytorch import layer, norm

LDM_PREFIX = "model.diffusion_model."

# Parts of a residual block, ours → theirs.
_DIFFUSERS_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "embedding": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
_LDM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "embedding": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}


def diffusers_names(network: LatentUNet) -> dict[str, str]:
    """Our paths, as in `stem/kernel` → names of UNet2DConditionModel's state."""
    last = len(network.multipliers) - 1
    places = {
        "time_in": "time_embedding.linear_1",
        "time_out": "time_embedding.linear_2",
        "stem": "conv_in",
        "middle_0": "mid_block.resnets.0",
        "middle_0_attention": "mid_block.attentions.0",
        "middle_1": "mid_block.resnets.1",
        "norm": "conv_norm_out",
        "out": "conv_out",
    }
    for level in range(last + 1):
        down, up = f"down_blocks.{level}", f"up_blocks.{last - level}"
        for way, block, count in (("down", down, network.blocks), ("up", up, network.blocks + 1)):
            for i in range(count):
                places[f"{way}{level}_{i}"] = f"{block}.resnets.{i}"
                places[f"{way}{level}_{i}_attention"] = f"{block}.attentions.{i}"
        places |= {f"down{level}_half/conv": f"{down}.downsamplers.0.conv", f"up{level}_double/conv": f"{up}.upsamplers.0.conv"}
    return _arrays(network, places, _DIFFUSERS_RESNET)


def ldm_names(network: LatentUNet) -> dict[str, str]:
    """Our paths, as in `stem/kernel` → names in Stable Diffusion's and Zero-1-to-3's original files, `model.diffusion_model.…`."""
    last = len(network.multipliers) - 1
    places = {
        "time_in": "time_embed.0",
        "time_out": "time_embed.2",
        "stem": "input_blocks.0.0",
        "middle_0": "middle_block.0",
        "middle_0_attention": "middle_block.1",
        "middle_1": "middle_block.2",
        "norm": "out.0",
        "out": "out.2",
    }
    number = 1
    for level in range(last + 1):
        for i in range(network.blocks):
            places |= {f"down{level}_{i}": f"input_blocks.{number}.0", f"down{level}_{i}_attention": f"input_blocks.{number}.1"}
            number += 1
        if level < last:
            places[f"down{level}_half/conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for level in reversed(range(last + 1)):
        for i in range(network.blocks + 1):
            places |= {f"up{level}_{i}": f"output_blocks.{number}.0", f"up{level}_{i}_attention": f"output_blocks.{number}.1"}
            number += 1
        places[f"up{level}_double/conv"] = f"output_blocks.{number - 1}.{2 if 2**level in network.attention_at else 1}.conv"
    return {ours: LDM_PREFIX + theirs for ours, theirs in _arrays(network, places, _LDM_RESNET).items()}


def _arrays(network: LatentUNet, places: Mapping[str, str], parts: Mapping[str, str]) -> dict[str, str]:
    """All arrays of the network; `places` of its modules, `parts` of a residual block."""
    names = {name: place for module in ("time_in", "time_out", "stem", "out") for name, place in layer(module, places[module]).items()}
    names |= norm("norm", places["norm"])

    def block(module: str, skip: bool, attention: bool) -> None:
        names.update(_resnet(module, places[module], parts, skip))
        if attention:
            names.update(_transformer(f"{module}_attention", places[f"{module}_attention"], network.depth))

    before = 1  # the stem's multiple of the width
    last = len(network.multipliers) - 1
    for level, multiplier in enumerate(network.multipliers):
        attention = 2**level in network.attention_at
        for i in range(network.blocks):
            block(f"down{level}_{i}", before != multiplier, attention)
            before = multiplier
        for i in range(network.blocks + 1):
            block(f"up{level}_{i}", True, attention)  # its input has the twin's features too
        for module in ([f"down{level}_half/conv"] if level < last else []) + ([f"up{level}_double/conv"] if level else []):
            names |= layer(module, places[module])
    block("middle_0", False, True)
    block("middle_1", False, False)
    return names


def _resnet(ours: str, theirs: str, parts: Mapping[str, str], skip: bool) -> dict[str, str]:
    names = norm(f"{ours}/norm1", f"{theirs}.{parts['norm1']}") | norm(f"{ours}/norm2", f"{theirs}.{parts['norm2']}")
    for part in ("conv1", "embedding", "conv2", *(["skip"] if skip else [])):
        names |= layer(f"{ours}/{part}", f"{theirs}.{parts[part]}")
    return names


def _transformer(ours: str, theirs: str, depth: int) -> dict[str, str]:
    names = norm(f"{ours}/norm", f"{theirs}.norm") | layer(f"{ours}/in", f"{theirs}.proj_in") | layer(f"{ours}/out", f"{theirs}.proj_out")
    for i in range(depth):
        here, there = f"{ours}/block{i}", f"{theirs}.transformer_blocks.{i}"
        for k in (1, 2, 3):
            names |= norm(f"{here}/norm{k}", f"{there}.norm{k}")
        for attention, theirs_ in (("self", "attn1"), ("cross", "attn2")):
            for part, to in (("query", "to_q"), ("key", "to_k"), ("value", "to_v")):
                names |= layer(f"{here}/{attention}/{part}", f"{there}.{theirs_}.{to}", bias=False)
            names |= layer(f"{here}/{attention}/out", f"{there}.{theirs_}.to_out.0")
        names |= layer(f"{here}/feedforward/in", f"{there}.ff.net.0.proj") | layer(f"{here}/feedforward/out", f"{there}.ff.net.2")
    return names
