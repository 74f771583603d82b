"""AutoencoderKL, as in Stable Diffusion v1: E_1 and D of the teacher [teacher paper §II-A; Rombach et al. 2022, App. G].

    q(z | x) = N(z; μ, diag σ²),      (μ, log σ²) = E(x),      x̂ = D(z),      z = μ + σ ε,  ε ~ N(0, I)
    KL(q ‖ N(0, I)) = ½ Σ (μ² + σ² − 1 − log σ²)

The encoder has `blocks` residual blocks a level and half the resolution between levels, the decoder one block more a level and twice the
resolution; both have two blocks with self-attention between at the lowest. Convolutions that halve pad after only. At the published size
(three channels, width 128, multipliers 1 2 4 4, z of 4 channels, an eighth of the resolution) it has 83,653,863 parameters.
"""

from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.diffusion.sampling import draw_noise
from jaxsr.nn.attention import PixelAttention
from jaxsr.nn.convolution import conv
from jaxsr.nn.norm import GroupNorm
from jaxsr.nn.resnet import Downsample, ResnetBlock, Upsample

EPSILON = 1e-6  # of every norm
LOG_VARIANCE = (-30.0, 20.0)  # kept within: exp stays finite and above zero in float32


class Gaussian(NamedTuple):
    """A diagonal normal distribution over latents.

    Attributes:
      mean, log_variance: `[B, h, w, z]` float32.
    """

    mean: Array
    log_variance: Array

    @classmethod
    def of(cls, moments: Array) -> "Gaussian":
        """Of `[B, h, w, 2 z]`: means, then log-variances."""
        return cls(*jnp.split(moments, 2, axis=-1))

    @property
    def moments(self) -> Array:
        """`[B, h, w, 2 z]`: what `of` makes a Gaussian of."""
        return jnp.concatenate(self, axis=-1)

    @property
    def mode(self) -> Array:
        return self.mean

    def sample(self, keys: Array) -> Array:
        """μ + σ ε `[B, h, w, z]`, ε drawn of the `keys` `[B]`, one a slice."""
        return self.mean + jnp.exp(0.5 * self.log_variance) * draw_noise(keys, 0, self.mean.shape[1:])

    def kl(self) -> Array:
        """KL(self ‖ N(0, I)) in nats, `[B]`: summed over each slice's latents."""
        return 0.5 * (jnp.square(self.mean) + jnp.exp(self.log_variance) - 1 - self.log_variance).sum((1, 2, 3))


class Encoder(nn.Module):
    """`[B, H, W, C]` → q(z | x), a `Gaussian` of `[B, H / f, W / f, latent]`; H and W must be multiples of f = 2 ** (len(multipliers) − 1).

    Attributes:
      width: features at full resolution.
      multipliers: of the width, one a level.
      blocks: residual blocks a level.
      latent: channels of z.
      groups: of every normalisation.
      remat: activations within blocks are computed again for the gradient, not kept.
      dtype: of the computation; parameters, norms' statistics, softmax and what comes out are float32.
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent: int = 4
    groups: int = 32
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        x = conv(2 * self.latent, dtype=jnp.float32, name="out")(encoded(self, x))
        mean, log_variance = jnp.split(conv(2 * self.latent, 1, dtype=jnp.float32, name="moments")(x), 2, axis=-1)
        return Gaussian(mean, jnp.clip(log_variance, *LOG_VARIANCE))


class Decoder(nn.Module):
    """z `[B, h, w, latent]` → `[B, f h, f w, channels]` float32, f = 2 ** (len(multipliers) − 1).

    Attributes:
      channels: of the image.
      blocks: of the encoder; here there is one more a level.
      width, multipliers, groups, remat, dtype: as in `Encoder`.
    """

    channels: int = 3
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    groups: int = 32
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        x = conv(z.shape[-1], 1, dtype=self.dtype, name="latent")(z.astype(self.dtype))
        x = conv(self.width * self.multipliers[-1], dtype=self.dtype, name="stem")(x)
        x = _middle(self, x)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                x = _block(self, f"up{level}_{i}", x, self.width * multiplier)
            if level:
                x = Upsample(self.dtype, name=f"up{level}_double")(x)
        x = nn.swish(GroupNorm(self.groups, epsilon=EPSILON, dtype=self.dtype, name="norm")(x))
        return conv(self.channels, dtype=jnp.float32, name="out")(x.astype(jnp.float32))


class Sizes(Protocol):
    """What the networks of this family have in common."""

    @property
    def width(self) -> int: ...
    @property
    def multipliers(self) -> tuple[int, ...]: ...
    @property
    def blocks(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def remat(self) -> bool: ...
    @property
    def dtype(self) -> Any: ...


def encoded(network: Sizes, x: Array) -> Array:
    """All of an encoder but what makes latents of its features: `[B, H, W, C]` → `[B, H / f, W / f, width * multipliers[-1]]` float32.

    To be called within the module `network`, whose layers these become.

    Raises:
      ValueError: where H or W is no multiple of f.
    """
    levels = len(network.multipliers)
    factor = 2 ** (levels - 1)
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f"sides must be multiples of {factor} for {levels} levels, got {x.shape[1]} × {x.shape[2]}")

    x = conv(network.width, dtype=network.dtype, name="stem")(x.astype(network.dtype))
    for level, multiplier in enumerate(network.multipliers):
        for i in range(network.blocks):
            x = _block(network, f"down{level}_{i}", x, network.width * multiplier)
        if level < levels - 1:
            x = Downsample(network.dtype, padding=(0, 1), name=f"down{level}_half")(x)
    x = _middle(network, x)
    x = nn.swish(GroupNorm(network.groups, epsilon=EPSILON, dtype=network.dtype, name="norm")(x))
    return x.astype(jnp.float32)


def _block(network: Sizes, name: str, x: Array, features: int) -> Array:
    """A residual block of `network`."""
    kind = nn.remat(ResnetBlock) if network.remat else ResnetBlock
    return jnp.asarray(kind(features, network.groups, dtype=network.dtype, epsilon=EPSILON, name=name)(x))


def _middle(network: Sizes, x: Array) -> Array:
    kind = nn.remat(PixelAttention) if network.remat else PixelAttention
    x = _block(network, "middle_0", x, x.shape[-1])
    x = kind(groups=network.groups, epsilon=EPSILON, fused=False, dtype=network.dtype, name="middle_attention")(x)
    return _block(network, "middle_1", x, x.shape[-1])
