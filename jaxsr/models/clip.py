"""CLIP's vision transformer, the condition encoder E_2 of the teacher [Radford et al. 2021; Dosovitskiy et al. 2021, Eqs. 1–4].

    x_0 = norm([class; W image patches] + positions)
    x'  = x + W_o softmax(q kᵀ / √d) v,      q, k, v = W norm(x) + b,       d channels a head
    x   = x' + W_2 φ(W_1 norm(x')),          φ(u) = u σ(1.702 u)
    tokens = x_L,   pooled = W_p norm(x_L, class)

Published sizes, parameters with W_p, and multiply-adds for an image of 224 × 224:

    name       patch   width   layers   heads   projection    parameters   multiply-adds
    vit-l-14      14    1024       24      16          768   303,966,208          81.0 G
    vit-b-32      32     768       12      12          512    87,849,216           4.4 G
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.attend import attend
from jaxsr.nn.convolution import DENSE, conv, dense

CLIP: Mapping[str, Mapping[str, int]] = {
    "vit-l-14": {"patch": 14, "width": 1024, "layers": 24, "heads": 16, "projection": 768},
    "vit-b-32": {"patch": 32, "width": 768, "layers": 12, "heads": 12, "projection": 512},
}
SIDE = 224  # pixels of the images that published weights are for
EPSILON = 1e-5  # of every norm
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's images in [0, 1], red, green, blue


class ClipOutput(NamedTuple):
    """What CLIP sees in an image, float32.

    Attributes:
      tokens: `[B, 1 + P, width]`, the last layer's: the class token, then the P patches row by row. Not normalised.
      pooled: `[B, projection]`, the class token normalised and projected.
    """

    tokens: Array
    pooled: Array


class VisionTransformer(nn.Module):
    """`[B, S, S, 3]`, as `clip_image` makes it → `ClipOutput`; `VisionTransformer(**CLIP["vit-l-14"])` is a published one.

    Attributes:
      patch: pixels on a side of what becomes one token; S must be a multiple of it, and stays what it was at the start.
      width: features of a token.
      layers: transformer blocks.
      heads: of width / heads channels each.
      projection: features of `pooled`.
      remat: activations within blocks are computed again for the gradient, not kept.
      dtype: of the computation; parameters, norms' statistics, softmax and what comes out are float32.

    Raises:
      ValueError: for an image that is not square, or no multiple of `patch`.
    """

    patch: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    projection: int = 768
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> ClipOutput:
        batch, height, width, _ = image.shape
        if height != width or height % self.patch:
            raise ValueError(f"CLIP sees squares whose side is a multiple of {self.patch}, got {height} × {width}: use clip_image")

        x = conv(self.width, self.patch, stride=self.patch, padding=(0, 0), bias=False, dtype=self.dtype, name="patch")(image)
        x = x.reshape(batch, -1, self.width)  # [B, P, width]
        init = nn.initializers.normal(self.width**-0.5)
        first = jnp.asarray(self.param("class", nn.with_logical_partitioning(init, DENSE[-1:]), (self.width,)))
        positions = jnp.asarray(
            self.param("positions", nn.with_logical_partitioning(init, (None, DENSE[-1])), (1 + x.shape[1], self.width))
        )
        x = jnp.concatenate([jnp.broadcast_to(first, (batch, 1, self.width)).astype(x.dtype), x], axis=1)  # [B, 1 + P, width]
        x = _norm(self.dtype, "norm_in")(x + positions.astype(x.dtype))

        block = nn.remat(Block) if self.remat else Block
        for layer in range(self.layers):
            x = jnp.asarray(block(self.heads, self.dtype, name=f"block{layer}")(x))
        tokens = x.astype(jnp.float32)
        pooled = dense(self.projection, bias=False, dtype=jnp.float32, name="projection")(_norm(jnp.float32, "norm_out")(tokens[:, 0]))
        return ClipOutput(tokens, pooled)


class Block(nn.Module):
    """Attention over the tokens `[B, N, width]`, then a perceptron of four times the width on each, both after a norm and added."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        normed = _norm(self.dtype, "norm1")(x)
        query, key, value = (
            dense(width, dtype=self.dtype, name=name)(normed).reshape(*x.shape[:2], self.heads, width // self.heads)
            for name in ("query", "key", "value")
        )
        y = attend(query, key, value)  # [B, N, heads, d]; softmax in float32
        x = x + dense(width, dtype=self.dtype, name="out")(y.reshape(x.shape))
        y = dense(4 * width, dtype=self.dtype, name="wide")(_norm(self.dtype, "norm2")(x))
        return x + dense(width, dtype=self.dtype, name="narrow")(y * nn.sigmoid(1.702 * y))


def clip_image(image: Array, side: int = SIDE) -> Array:
    """Slices `[B, H, W, 1]` in [−1, 1] → what CLIP was trained on: `[B, side, side, 3]`, float32.

    The whole slice is seen: it is padded to a square with −1 (black), centred. Grey is repeated to three channels, brought to [0, 1] and
    clipped there before and after the cubic filter, which overshoots, as 8-bit images do; then CLIP's mean and deviation.

    The filter is Keys' with a = −½, widened where it shrinks (antialias): that of PIL, which CLIP's own preprocessing uses, and of torch's
    `interpolate(mode="bicubic", antialias=True)`. torch's without antialias, as in Zero-1-to-3, has a = −¾ and does not widen.
    """
    height, width = image.shape[1:3]
    missing = [max(height, width) - n for n in (height, width)]
    grey = jnp.clip((image.astype(jnp.float32) + 1) / 2, 0, 1)
    square = jnp.pad(grey, [(0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)])
    small = jnp.clip(jax.image.resize(square, (len(image), side, side, image.shape[-1]), "bicubic", antialias=True), 0, 1)
    return (small - jnp.array(MEAN)) / jnp.array(STD)


def patches_of_slice(tokens: Array, sides: Sequence[int]) -> Array:
    """The tokens of a slice's `clip_image`, `[B, 1 + P, C]` → its patches on a grid of `sides` (h, w), `[B, h, w, C]`.

    The patches of the padded square are brought to its size bilinearly, and what was padded is cut off.
    """
    side, whole = math.isqrt(tokens.shape[1] - 1), max(sides)
    patches = tokens[:, 1:].reshape(len(tokens), side, side, -1)
    square = jax.image.resize(patches, (len(tokens), whole, whole, tokens.shape[-1]), "bilinear")
    top, left = ((whole - n) // 2 for n in sides)
    return square[:, top : top + sides[0], left : left + sides[1]]


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(EPSILON, dtype=dtype, name=name)
