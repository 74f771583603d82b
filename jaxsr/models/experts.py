"""The diffusion experts of MoEDiff-SR, in the latents of a VQ-VAE [MoEDiff-SR, §II.C.1–3].

    ε̂_(i) = E_i(concat(z_t, condition), t)                                                                    [Eq. 7]

All three have a 3×3 stem, two halvings of the resolution by 4×4 convolutions of stride 2, a bottleneck, two doublings by transposed ones
and a 1×1 head. They differ in what stands between:

    expert         after the stem             after each halving and doubling        bottleneck
    E_1  smooth    residual, Laplacian edges  residual                               dilated 3×3, residual
    E_2  cortex                               dense block                            residual, of complex convolutions
    E_3  junction                             3×3, channel attention                 3×3, residual

and E_3 has a non-local block in its decoder, at half the latents' resolution: 0.17 G multiply-adds for 32 × 32 latents, where at full
resolution it would take 1.07 G, and blocks still work on what it says. What enters each halving is added to what leaves its doubling: the
'residual connections' of the mirrored decoder. The time scales and shifts in every block (FiLM).

The paper gives no widths. Here all levels are as wide as the latents, 512: the head is linear, so an expert of fewer features would answer
in fewer dimensions than the noise of Eq. 7 has, and what it cannot answer Eq. 8 leaves in ẑ_0. For the same reason nothing stands between
the last block and the head: in E_1 and E_2 noise has a linear way through. With a condition of 256 channels, at 32 × 32 latents:

    expert         parameters    multiply-adds
    E_1            57,311,744          19.42 G       paper: the heaviest 62.69 M and 42.21 G
    E_2            28,248,832           7.85 G
    E_3            43,017,600          10.98 G
    together      128,578,176          38.24 G       paper: 133.02 M and 56.12 G, with what makes the condition
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.attention import ChannelAttention, NonLocal
from jaxsr.nn.complex import ComplexConv
from jaxsr.nn.convolution import conv, conv_transpose, dense
from jaxsr.nn.dense_block import DenseBlock
from jaxsr.nn.edges import EdgeEnhancement
from jaxsr.nn.embedding import sinusoids
from jaxsr.nn.film import FilmConvBlock
from jaxsr.nn.resnet import ResnetBlock

FACTOR = 4  # by which the resolution falls to the bottleneck


class Expert(nn.Module):
    """`z_t` `[B, h, w, C]`, `condition` `[B, h, w, D]`, `time` `[B]` → `[B, h, w, C]` float32, zero before training.

    What the three have in common; each says what its `first`, `block` and `middle` are. h and w must be multiples of 4, and width of
    `groups`. `time` is real-valued, in steps, as `Schedule.time`.

    Attributes:
      width: features at the latents' resolution; at least C where the answer is noise.
      multipliers: of the width, at full, half and quarter resolution.
      groups: of every normalisation but those within dense blocks.
      remat: activations within blocks are computed again for the gradient, not kept.
      dtype: of the computation; parameters, the embedding of time, norms' statistics, softmax and the head are float32.

    Raises:
      ValueError: for sides that are not multiples of 4, and a condition on another grid than z_t.
    """

    width: int = 512
    multipliers: tuple[int, int, int] = (1, 1, 1)
    groups: int = 32
    remat: bool = False
    dtype: Any = jnp.float32

    def first(self, x: Array, embedding: Array) -> Array:
        """After the stem, at full resolution."""
        return x

    def block(self, x: Array, embedding: Array, name: str) -> Array:
        """After a halving or doubling: 'down1', 'down2', 'up1', 'up0', by the level that it leads to."""
        raise NotImplementedError

    def middle(self, x: Array, embedding: Array) -> Array:
        """At quarter resolution."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, z_t: Array, condition: Array, time: Array) -> Array:
        _, height, width, channels = z_t.shape
        if height % FACTOR or width % FACTOR:
            raise ValueError(f"sides of the latents must be multiples of {FACTOR} for an expert, got {height} × {width}")
        if condition.shape[:3] != z_t.shape[:3]:
            raise ValueError(f"the condition must lie on the latents' grid, {z_t.shape[:3]}, got {condition.shape[:3]}: resize it first")

        full, half, quarter = (self.width * m for m in self.multipliers)
        embedding = dense(4 * self.width, dtype=jnp.float32, name="time_in")(sinusoids(time, self.width))
        embedding = nn.swish(dense(self.width, dtype=jnp.float32, name="time_out")(nn.swish(embedding)))  # of what every block sees

        x = conv(full, dtype=self.dtype, name="stem")(jnp.concatenate([z_t, condition], axis=-1).astype(self.dtype))
        x = skip0 = self.first(x, embedding)
        x = conv(half, 4, stride=2, padding=(1, 1), dtype=self.dtype, name="down1_half")(x)
        x = skip1 = self.block(x, embedding, "down1")
        x = conv(quarter, 4, stride=2, padding=(1, 1), dtype=self.dtype, name="down2_half")(x)
        x = self.block(x, embedding, "down2")

        x = self.middle(x, embedding)

        x = conv_transpose(half, dtype=self.dtype, name="up1_double")(x) + skip1
        x = self.block(x, embedding, "up1")
        x = conv_transpose(full, dtype=self.dtype, name="up0_double")(x) + skip0
        x = self.block(x, embedding, "up0")
        return conv(channels, 1, zero=True, dtype=jnp.float32, name="head")(x.astype(jnp.float32))


class SmoothExpert(Expert):
    """E_1, for the smooth white matter of the centrum semiovale [§II.C.1]; called as any `Expert`.

    Attributes:
      dilation: of the bottleneck's first convolution: at a quarter of the resolution, 2 looks 4 latent pixels further each way than 1.
    """

    dilation: int = 2

    def first(self, x: Array, embedding: Array) -> Array:
        x = _residual(self, x, embedding, "first")
        return jnp.asarray(_kind(self, EdgeEnhancement)(self.dtype, name="edges")(x, embedding))

    def block(self, x: Array, embedding: Array, name: str) -> Array:
        return _residual(self, x, embedding, name)

    def middle(self, x: Array, embedding: Array) -> Array:
        x = _convolution(self, x, embedding, "middle_0", self.dilation)
        return _residual(self, x, embedding, "middle_1")


class CortexExpert(Expert):
    """E_2, for the high frequencies of the cortex [§II.C.2]; called as any `Expert`.

    Attributes:
      layers: of each dense block.
      growth: channels that a layer of a dense block adds.
    """

    layers: int = 4
    growth: int = 16

    def block(self, x: Array, embedding: Array, name: str) -> Array:
        return jnp.asarray(_kind(self, DenseBlock)(x.shape[-1], self.layers, self.growth, self.dtype, name=name)(x, embedding))

    def middle(self, x: Array, embedding: Array) -> Array:
        return _residual(self, x, embedding, "middle", convolution=ComplexConv)


class JunctionExpert(Expert):
    """E_3, for the sharp transition from grey to white matter [§II.C.3]; called as any `Expert`.

    Attributes:
      reduction: of the channels within channel attention.
    """

    reduction: int = 16

    def block(self, x: Array, embedding: Array, name: str) -> Array:
        x = _convolution(self, x, embedding, name)
        x = jnp.asarray(_kind(self, ChannelAttention)(self.reduction, self.dtype, name=f"{name}_attention")(x))
        return jnp.asarray(_kind(self, NonLocal)(self.dtype, name="nonlocal")(x)) if name == "up1" else x

    def middle(self, x: Array, embedding: Array) -> Array:
        x = _convolution(self, x, embedding, "middle_0")
        return _residual(self, x, embedding, "middle_1")


EXPERTS = (SmoothExpert, CortexExpert, JunctionExpert)  # E_1, E_2, E_3


def _residual(expert: Expert, x: Array, embedding: Array, name: str, convolution: Callable[..., Any] = conv) -> Array:
    """A residual block as wide as its input."""
    options = {"dtype": expert.dtype, "film": True, "convolution": convolution}
    return jnp.asarray(_kind(expert, ResnetBlock)(x.shape[-1], expert.groups, **options, name=name)(x, embedding))


def _convolution(expert: Expert, x: Array, embedding: Array, name: str, dilation: int = 1) -> Array:
    """A convolution block as wide as its input."""
    return jnp.asarray(_kind(expert, FilmConvBlock)(x.shape[-1], expert.groups, dilation, expert.dtype, name=name)(x, embedding))


def _kind(expert: Expert, block: type[nn.Module]) -> Any:
    """`block`, or where `remat` says so one whose activations are not kept."""
    return nn.remat(block) if expert.remat else block
