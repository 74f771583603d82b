"""What a network was made with, told from the shapes of its published tensors; and the shapes of ours that is made so.

Shapes do not tell heads, groups of a norm, and non-linearities: those are Stable Diffusion v1's and CLIP's. What of it a config can say
otherwise is told with the rest.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jaxsr.models.autoencoder import Decoder, Encoder
from jaxsr.models.clip import CLIP, VisionTransformer
from jaxsr.models.perceptual import perceptual_shapes
from jaxsr.models.unet import LatentUNet
from jaxsr.weights.file import WeightsError
from jaxsr.weights.names import Tensor

Tensors = Mapping[str, Tensor]
Sizes = Mapping[str, Any]  # as JSON has it: numbers, and lists of them
Shapes = dict[str, tuple[int, ...]]

HEAD = 64  # channels of a head in every CLIP that was published with these blocks
UNET_UNSEEN: Sizes = {"heads": 8, "groups": 32}  # of Stable Diffusion v1
AUTOENCODER_UNSEEN: Sizes = {"groups": 32}

# ------------------------------------------------------------------------------------------------ the UNet


def unet_network(sizes: Sizes) -> LatentUNet:
    """The network of `sizes`; that of its input's channels, `in_channels`, is told by the input."""
    made_with: dict[str, Any] = {name: tuple(size) if isinstance(size, list) else size for name, size in sizes.items()}
    return LatentUNet(**{name: size for name, size in made_with.items() if name != "in_channels"})


def unet_shapes(sizes: Sizes) -> Shapes:
    side = 2 ** (len(sizes["multipliers"]) - 1)
    x, context = (1, side, side, sizes["in_channels"]), (1, 1, sizes["context_width"])
    return _shapes(unet_network(sizes), x, (1,), context)


def unet_of_diffusers(tensors: Tensors) -> Sizes:
    levels, blocks = _count(tensors, r"down_blocks\.(\d+)\."), _count(tensors, r"down_blocks\.0\.resnets\.(\d+)\.")
    widths = [_shape(tensors, f"down_blocks.{level}.resnets.0.conv1.weight", 4)[0] for level in range(levels)]
    attention = [level for level in range(levels) if f"down_blocks.{level}.attentions.0.norm.weight" in tensors]
    return _unet(tensors, ("conv_in", "conv_out", "mid_block.attentions.0"), widths, blocks, attention)


def unet_of_ldm(tensors: Tensors) -> Sizes:
    """Of the order in which blocks stand on the way down: a level's, then the convolution that halves."""
    halves = [i for i in range(_count(tensors, r"input_blocks\.(\d+)\.")) if f"input_blocks.{i}.0.op.weight" in tensors]
    last = halves[0] if halves else _count(tensors, r"input_blocks\.(\d+)\.")
    first = [1] + [i + 1 for i in halves]  # block of each level
    widths = [_shape(tensors, f"input_blocks.{i}.0.in_layers.2.weight", 4)[0] for i in first]
    attention = [level for level, i in enumerate(first) if f"input_blocks.{i}.1.norm.weight" in tensors]
    return _unet(tensors, ("input_blocks.0.0", "out.2", "middle_block.1"), widths, last - 1, attention)


def _unet(tensors: Tensors, places: tuple[str, str, str], widths: list[int], blocks: int, attention: list[int]) -> Sizes:
    stem, out, middle = places
    width, channels, *_ = _shape(tensors, f"{stem}.weight", 4)
    return {
        "in_channels": channels,
        "channels": _shape(tensors, f"{out}.weight", 4)[0],
        "width": width,
        "multipliers": _multipliers(widths, width),
        "blocks": blocks,
        "attention_at": [2**level for level in attention],
        "depth": _count(tensors, re.escape(middle) + r"\.transformer_blocks\.(\d+)\."),
        "context_width": _shape(tensors, f"{middle}.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        **UNET_UNSEEN,
    }


# ------------------------------------------------------------------------------------------------ the autoencoder


def autoencoder_shapes(sizes: Sizes) -> Shapes:
    encoder = {name: sizes[name] for name in ("width", "blocks", "latent", "groups")} | {"multipliers": tuple(sizes["multipliers"])}
    decoder = {name: encoder[name] for name in ("width", "blocks", "groups", "multipliers")} | {"channels": sizes["channels"]}
    side = 2 ** (len(sizes["multipliers"]) - 1)
    halves = {
        "encoder": _shapes(Encoder(**encoder), (1, side, side, sizes["channels"])),
        "decoder": _shapes(Decoder(**decoder), (1, 1, 1, sizes["latent"])),
    }
    return {f"{half}/{name}": shape for half, shapes in halves.items() for name, shape in shapes.items()}


def autoencoder_sizes(tensors: Tensors, level: str, block: str) -> Sizes:
    """`level` and `block` are what the layout calls them, as in `encoder.down_blocks.0.resnets.1`."""
    levels = _count(tensors, rf"encoder\.{level}\.(\d+)\.")
    width, channels, *_ = _shape(tensors, "encoder.conv_in.weight", 4)
    return {
        "channels": channels,
        "width": width,
        "multipliers": _multipliers([_shape(tensors, f"encoder.{level}.{i}.{block}.0.conv1.weight", 4)[0] for i in range(levels)], width),
        "blocks": _count(tensors, rf"encoder\.{level}\.0\.{block}\.(\d+)\."),
        "latent": _shape(tensors, "decoder.conv_in.weight", 4)[1],
        **AUTOENCODER_UNSEEN,
    }


autoencoder_of_diffusers = functools.partial(autoencoder_sizes, level="down_blocks", block="resnets")
autoencoder_of_ldm = functools.partial(autoencoder_sizes, level="down", block="block")

# ------------------------------------------------------------------------------------------------ CLIP, VGG-16, LPIPS

_BACKBONE = "backbone/"


def clip_shapes(sizes: Sizes) -> Shapes:
    return _shapes(
        VisionTransformer(**{name: size for name, size in sizes.items() if name != "side"}), (1, sizes["side"], sizes["side"], 3)
    )


def clip_of_transformers(tensors: Tensors) -> Sizes:
    places = ("vision_model.embeddings.patch_embedding.weight", "vision_model.embeddings.position_embedding.weight")
    return _clip(tensors, places, r"vision_model\.encoder\.layers\.(\d+)\.", _shape(tensors, "visual_projection.weight", 2)[0])


def clip_of_openai(tensors: Tensors) -> Sizes:
    places = ("visual.conv1.weight", "visual.positional_embedding")
    return _clip(tensors, places, r"visual\.transformer\.resblocks\.(\d+)\.", _shape(tensors, "visual.proj", 2)[1])


def _clip(tensors: Tensors, places: tuple[str, str], layers: str, projection: int) -> Sizes:
    """What `VisionTransformer` is made with, and `side`, pixels of the image that the positions are for."""
    (width, _, patch, _), (tokens, _) = _shape(tensors, places[0], 4), _shape(tensors, places[1], 2)
    across = math.isqrt(tokens - 1) if tokens > 1 else 0
    if width % HEAD or across**2 != tokens - 1:
        raise WeightsError(
            f"{tokens} positions of {width} features are none of a vision transformer with heads of {HEAD}: use {' or '.join(CLIP)}"
        )
    blocks = _count(tensors, layers)
    return {
        **{"patch": patch, "width": width, "layers": blocks, "heads": width // HEAD},
        **{"projection": projection, "side": across * patch},
    }


def vgg16_shapes(sizes: Sizes) -> Shapes:
    return {name.removeprefix(_BACKBONE): shape for name, shape in lpips_shapes({"net": "vgg"}).items() if name.startswith(_BACKBONE)}


def lpips_shapes(sizes: Sizes) -> Shapes:
    return {name: leaf.shape for name, leaf in flatten_dict(perceptual_shapes(sizes["net"])["params"], sep="/").items()}


# ------------------------------------------------------------------------------------------------ all of them


def _shapes(network: nn.Module, *inputs: tuple[int, ...]) -> Shapes:
    """Of the parameters by name; nothing is allocated."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
    variables = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), *arrays))
    return {name: leaf.shape for name, leaf in flatten_dict(variables["params"], sep="/").items()}


def _shape(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise WeightsError(f"{name} is missing: is the file whole, and of this kind?")
    if len(shape := tuple(tensors[name].shape)) != dimensions:
        raise WeightsError(f"{name} has shape {list(shape)}, expected {dimensions} dimensions: is the file of this kind?")
    return shape


def _count(tensors: Tensors, pattern: str) -> int:
    """One more than the greatest number in the names that begin as `pattern` says."""
    return max((int(found[1]) for name in tensors if (found := re.match(pattern, name))), default=-1) + 1


def _multipliers(widths: list[int], width: int) -> list[int]:
    if not widths or any(w % width for w in widths):
        raise WeightsError(f"levels of {widths} features are no multiples of the first convolution's {width}: is the file of this kind?")
    return [w // width for w in widths]
