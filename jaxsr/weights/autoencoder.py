"""The names of the autoencoder's parameters in published files: those of diffusers, new and old, and the original ones of `ldm`.

Ours are `encoder/…` and `decoder/…`, of `jaxsr.models.autoencoder`. Kernels turn as `weights/pytorch.py` says; the four projections of the
attention in the middle are 1 × 1 convolutions here and in the original, linear layers in diffusers.
"""

from collections.abc import Mapping, Sequence

from jaxsr.weights.pytorch import layer, norm

LDM_PREFIX = "first_stage_model."

_PROJECTIONS = ("query", "key", "value", "out")
# Parts of the attention in the middle, ours → theirs.
_DIFFUSERS_ATTENTION = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
_OLD_DIFFUSERS_ATTENTION = {"norm": "group_norm", "query": "query", "key": "key", "value": "value", "out": "proj_attn"}
_LDM_ATTENTION = {"norm": "norm", "query": "q", "key": "k", "value": "v", "out": "proj_out"}


def diffusers_names(multipliers: Sequence[int], blocks: int, *, old: bool = False) -> dict[str, str]:
    """Our paths, as in `encoder/stem/kernel` → names of AutoencoderKL's state; `old`: as files of before 2023 have them (Stable
    Diffusion's among them), where the attention's layers had other names."""
    levels = len(multipliers)
    places: dict[str, str] = {}
    for half in ("encoder", "decoder"):
        places |= {f"{half}/stem": f"{half}.conv_in", f"{half}/norm": f"{half}.conv_norm_out", f"{half}/out": f"{half}.conv_out"}
        places |= {f"{half}/middle_{i}": f"{half}.mid_block.resnets.{i}" for i in (0, 1)}
        places[f"{half}/middle_attention"] = f"{half}.mid_block.attentions.0"
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        places |= {f"encoder/down{level}_{i}": f"{down}.resnets.{i}" for i in range(blocks)}
        places |= {f"decoder/up{level}_{i}": f"{up}.resnets.{i}" for i in range(blocks + 1)}
        places[f"encoder/down{level}_half/conv"] = f"{down}.downsamplers.0.conv"
        places[f"decoder/up{level}_double/conv"] = f"{up}.upsamplers.0.conv"
    return _arrays(multipliers, blocks, places, _OLD_DIFFUSERS_ATTENTION if old else _DIFFUSERS_ATTENTION, "conv_shortcut")


def linear_in_diffusers(ours: str) -> bool:
    """Whether the 1 × 1 convolution of this path is a linear layer in diffusers."""
    return any(f"middle_attention/{part}/" in ours for part in _PROJECTIONS)


def ldm_names(multipliers: Sequence[int], blocks: int) -> dict[str, str]:
    """Our paths, as in `encoder/stem/kernel` → names in Stable Diffusion's and Zero-1-to-3's original files, `first_stage_model.…`."""
    places: dict[str, str] = {}
    for half in ("encoder", "decoder"):
        places |= {f"{half}/stem": f"{half}.conv_in", f"{half}/norm": f"{half}.norm_out", f"{half}/out": f"{half}.conv_out"}
        places |= {f"{half}/middle_{i}": f"{half}.mid.block_{i + 1}" for i in (0, 1)}
        places[f"{half}/middle_attention"] = f"{half}.mid.attn_1"
    for level in range(len(multipliers)):
        down, up = f"encoder.down.{level}", f"decoder.up.{level}"
        places |= {f"encoder/down{level}_{i}": f"{down}.block.{i}" for i in range(blocks)}
        places |= {f"decoder/up{level}_{i}": f"{up}.block.{i}" for i in range(blocks + 1)}
        places[f"encoder/down{level}_half/conv"] = f"{down}.downsample.conv"
        places[f"decoder/up{level}_double/conv"] = f"{up}.upsample.conv"
    names = _arrays(multipliers, blocks, places, _LDM_ATTENTION, "nin_shortcut")
    return {ours: LDM_PREFIX + theirs for ours, theirs in names.items()}


def _arrays(
    multipliers: Sequence[int], blocks: int, places: Mapping[str, str], attention: Mapping[str, str], shortcut: str
) -> dict[str, str]:
    """All arrays of both halves; `places` of their modules, parts of the `attention`, and a residual block's `shortcut`."""
    names = layer("encoder/moments", "quant_conv") | layer("decoder/latent", "post_quant_conv")

    def block(module: str, skip: bool) -> None:
        there = places[module]
        for k in (1, 2):
            names.update(norm(f"{module}/norm{k}", f"{there}.norm{k}") | layer(f"{module}/conv{k}", f"{there}.conv{k}"))
        if skip:
            names.update(layer(f"{module}/skip", f"{there}.{shortcut}"))

    for half in ("encoder", "decoder"):
        names |= layer(f"{half}/stem", places[f"{half}/stem"]) | layer(f"{half}/out", places[f"{half}/out"])
        names |= norm(f"{half}/norm", places[f"{half}/norm"])
        block(f"{half}/middle_0", False)
        block(f"{half}/middle_1", False)
        middle = f"{half}/middle_attention"
        names |= norm(f"{middle}/norm", f"{places[middle]}.{attention['norm']}")
        for part in _PROJECTIONS:
            names |= layer(f"{middle}/{part}", f"{places[middle]}.{attention[part]}")

    last = len(multipliers) - 1
    for level, multiplier in enumerate(multipliers):
        from_above, from_below = multipliers[level - 1] if level else 1, multipliers[min(level + 1, last)]
        for i in range(blocks):
            block(f"encoder/down{level}_{i}", i == 0 and from_above != multiplier)
        for i in range(blocks + 1):
            block(f"decoder/up{level}_{i}", i == 0 and from_below != multiplier)
        for module in ([f"encoder/down{level}_half/conv"] if level < last else []) + ([f"decoder/up{level}_double/conv"] if level else []):
            names |= layer(module, places[module])
    return names
