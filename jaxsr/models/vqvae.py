"""The VQ-VAE of MoEDiff-SR: E_1, D and a codebook [MoEDiff-SR §II-A, §III; van den Oord et al. 2017].

    k(z) = argmin_k |z − c_k|²,      z_q = c_k(z)                                                              [van den Oord, Eqs. 1 and 2]
    û_k  ← γ û_k + (1 − γ) · mean over the vectors z of the batch of  [k(z) = k]                               [App. A.1]
    ŝ_k  ← γ ŝ_k + (1 − γ) · mean over the vectors z of the batch of  [k(z) = k] z
    c_k  = ŝ_k / ũ_k,       ũ_k = (û_k + ε / K) / (Σ û + ε) · Σ û

The encoder is that of the KL autoencoder (`jaxsr.models.autoencoder`) but for its last two convolutions, which make a vector in place of
moments, as in latent diffusion's VQModel; the decoder is the same. The codebook is no parameter: it is a running mean of the vectors that
come to each code, and the gradient passes it by (straight-through).

Appendix A.1 counts vectors where we have shares of them. Shares do not depend on the size of the batch; a batch's are the mean of those of
its parts, so accumulating gradients over parts, or computing them on several devices, leaves the codebook what it would be. The smoothing ε
is likewise a share of what a code has where all are used alike, 1 / K: a code that is used so little that ε shows has been replaced.

At the published size (width 128, multipliers 1 2 4 4, two blocks, K = 1024 codes of 512 numbers, a slice and two maps in, a slice out) the
networks have 88,840,577 parameters, and the codebook 524,288 numbers.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxsr.models.autoencoder import encoded
from jaxsr.nn.convolution import conv

SMOOTHING = 1e-5  # ε
UNUSED = 1e-3  # what part of 1 / K a new code is taken to have been used


class VqEncoder(nn.Module):
    """`[B, H, W, C]` → vectors `[B, H / f, W / f, embedding]` float32, not quantised; f = 2 ** (len(multipliers) − 1).

    Attributes:
      embedding: numbers in a vector.
      width, multipliers, blocks, groups, remat, dtype: as in `jaxsr.models.autoencoder.Encoder`, errors too.
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    embedding: int = 512
    groups: int = 32
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = conv(self.embedding, dtype=jnp.float32, name="out")(encoded(self, x))
        return conv(self.embedding, 1, dtype=jnp.float32, name="quantise")(x)


class Codebook(NamedTuple):
    """K codes of D numbers, as running means; float32.

    Attributes:
      usage: û, what share of all vectors comes to each code, `[K]`.
      sums: ŝ, the sum of those that do, divided by the number of all, `[K, D]`.
    """

    usage: Array
    sums: Array


def new_codebook(key: Array, codes: int, features: int) -> Codebook:
    """Random codes, as good as unused: `restarted` replaces all of them by vectors of the first batch.

    Without it, whatever vectors come to a code first outweigh where it was. Codes lie as close together as 1 / K, so that these are those
    of its direction: of codes that lie apart, the one nearest to 0 would have all.
    """
    usage = jnp.full(codes, UNUSED / codes)
    return Codebook(usage, usage[:, None] * jax.random.normal(key, (codes, features)) / codes)


def codes(codebook: Codebook) -> Array:
    """c `[K, D]`."""
    usage, sums = codebook
    total = usage.sum()
    smoothed = (usage + SMOOTHING / usage.size) / (total + SMOOTHING) * total
    return sums / smoothed[:, None]


def quantise(z: Array, codebook: Codebook) -> tuple[Array, Array]:
    """z_q, of the shape of `z` `[…, D]`, and k(z) `[…]` int32; of two codes that are as near the first.

    |z|² is left out of |z − c|² = |z|² − 2 z·c + |c|²: it is the same for every code, and would only round the rest.
    """
    c = codes(codebook)
    products = jnp.einsum("...d,kd->...k", z.astype(jnp.float32), c, precision=jax.lax.Precision.HIGHEST)
    indices = jnp.argmin(jnp.square(c).sum(-1) - 2 * products, axis=-1).astype(jnp.int32)
    return c[indices], indices


def straight_through(z: Array, z_q: Array) -> Array:
    """`z_q`, with the gradient of `z` [van den Oord, §3.2]."""
    return jax.lax.stop_gradient(z_q) + (z - jax.lax.stop_gradient(z))


def updated(codebook: Codebook, z: Array, indices: Array, decay: float) -> Codebook:
    """The codebook after vectors `z` `[…, D]` have come to the codes `indices` `[…]`; `decay` is γ.

    Linear in the batch: the mean of the updates by equal parts of a batch is the update by the batch.
    """
    vectors = z.astype(jnp.float32).reshape(-1, z.shape[-1])
    # A product in place of a scatter, which on a GPU adds in another order each time.
    came = jax.nn.one_hot(indices.ravel(), codebook.usage.size) / len(vectors)  # [N, K]
    sums = jnp.einsum("nk,nd->kd", came, vectors, precision=jax.lax.Precision.HIGHEST)
    return Codebook(*(decay * old + (1 - decay) * new for old, new in zip(codebook, (came.sum(0), sums), strict=True)))


def dead(codebook: Codebook, least: float) -> Array:
    """Whether less than the share `least` of all vectors comes to a code, `[K]` bool."""
    return codebook.usage < least


def restarted(codebook: Codebook, z: Array, key: Array, least: float) -> Codebook:
    """Dead codes become vectors of `z` `[…, D]` chosen at random by `key`, as if a share of 1 / K had come to each.

    Which are dead is read from `codebook`, so that parts of one batch agree on it. Each part chooses its own vectors: where gradients are
    accumulated, the mean of these is what the code becomes.
    """
    vectors, count = z.astype(jnp.float32).reshape(-1, z.shape[-1]), codebook.usage.size
    chosen = jax.random.choice(key, len(vectors), (count,), replace=len(vectors) < count)
    return Codebook(
        jnp.where(dead(codebook, least), 1 / count, codebook.usage),
        jnp.where(dead(codebook, least)[:, None], vectors[chosen] / count, codebook.sums),
    )


def perplexity(indices: Array, codes: int) -> Array:
    """exp of the entropy of how often each of `codes` occurs in `indices`: 1 where it is one and the same, `codes` where all do alike."""
    shares = jnp.bincount(indices.ravel(), length=codes) / indices.size
    return jnp.exp(jax.scipy.special.entr(shares).sum())
