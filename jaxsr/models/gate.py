"""How a slice chooses its experts: patches at several scales, the encoder E_2, and the gate [MoEDiff-SR, §II-A–B].

    z_c = E_2(F),      F: the tokens of all scales, one a patch                                                     [Eq. 1]
    cos_ni = q_i · z̃_n / (|q_i| |z̃_n|),      z̃ = W_2 gelu(W_1 z_c),      q_i: learned, one an expert
    attention_ni = exp(cos_ni) / Σ_m exp(cos_mi)                                                                    [Eq. 2]
    score_i = Σ_n attention_ni cos_ni                                                                               [Eq. 3]
    G_i ∝ softmax(score)_i · softmax(−γ c)_i,      c: how much each expert has been used                            [Eq. 4]

The paper concatenates the tokens of all scales before the encoder. But its blocks are Swin's [Liu et al. 2021], whose windows need a grid,
and tokens of different scales are not neighbours on one. So each scale keeps its grid, windows live inside it, and scales meet in the gate
alone. Blocks are shared: one set of parameters runs over every grid. What tells them the scale is the bias of its projection, a learned
vector added to all of its tokens; an embedding beside it would be the same parameter twice.

G as printed sums to about 1 / K: the two factors sum to one each, their product does not. But Eq. 9 needs a convex combination, so G is
normalised, by which it becomes softmax(score − γ c); `literal` gives the product as printed. cos lies in [−1, 1], so
G_i / G_j ≤ e² e^(γ (c_j − c_i)): the gate prefers an expert at most 7.4 times over another that was used as much.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.convolution import DENSE, conv, dense
from jaxsr.nn.swin import SwinBlock

GAMMA = 0.1
DECAY = 0.99
LAYER_EPSILON = 1e-5
SHORTEST = 1e-4  # a shorter vector counts as this long in a cosine: zero has the cosine 0 with everything, and a finite gradient

Grids = tuple[Array, ...]  # one a scale, from the largest patch to the smallest


class Gating(NamedTuple):
    """What the gate finds in B slices, float32; the maps of a scale are `[B, H / patch, W / patch, K]`.

    Attributes:
      score: of each expert, `[B, K]`, in [−1, 1] [Eq. 3].
      attention: one map a scale, in [0, 1]; over all scales together they sum to one for each expert [Eq. 2].
      cosine: one map a scale, in [−1, 1].
    """

    score: Array
    attention: Grids
    cosine: Grids


class MultiScalePatches(nn.Module):
    """`image` `[B, H, W, C]` → one grid of tokens a scale, `[B, H / patch, W / patch, width]`.

    Attributes:
      patches: sides of a patch in pixels, one a scale, from the largest to the smallest.
      width: d, features of a token.
      dtype: of the computation; parameters are float32.

    Raises:
      ValueError: for patches that do not descend, or sides that are no multiple of all of them.
    """

    patches: tuple[int, ...] = (64, 32, 16)
    width: int = 384
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> Grids:
        if list(self.patches) != sorted(set(self.patches), reverse=True):
            raise ValueError(f"patches must descend, from the largest to the smallest, got {self.patches}")
        multiple = math.lcm(*self.patches)
        if image.shape[1] % multiple or image.shape[2] % multiple:
            height, width = image.shape[1:3]
            raise ValueError(f"sides must be multiples of {multiple} for patches of {self.patches}, got {height} × {width}: pad the slice")
        return tuple(
            jnp.asarray(conv(self.width, patch, stride=patch, padding=(0, 0), dtype=self.dtype, name=f"size{patch}")(image))
            for patch in self.patches
        )


class TokenEncoder(nn.Module):
    """E_2: slices `image` `[B, H, W, C]` → z_c, one grid a scale, `[B, H / patch, W / patch, width]` in `dtype` [Eq. 1].

    With the patches of the paper and one channel, 12,714,852 parameters at the defaults; 336 tokens of 256 × 256 pixels.

    Attributes:
      patches, width: as in `MultiScalePatches`.
      depth: Swin's blocks, every other one shifted, each with the same parameters for all scales.
      heads: of every attention.
      window: tokens on a side of a window.
      remat: activations within blocks are computed again for the gradient, not kept.
      dtype: of the computation; parameters, norms' statistics and softmax are float32.

    Raises:
      ValueError: as `MultiScalePatches` and `SwinBlock`.
    """

    patches: tuple[int, ...] = (64, 32, 16)
    width: int = 384
    depth: int = 6
    heads: int = 6
    window: int = 4
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> Grids:
        grids = MultiScalePatches(self.patches, self.width, self.dtype, name="patches")(image)
        kind = nn.remat(SwinBlock) if self.remat else SwinBlock
        for i in range(self.depth):
            block = kind(self.heads, self.window, shifted=i % 2 == 1, dtype=self.dtype, name=f"block{i}")
            grids = tuple(jnp.asarray(block(grid)) for grid in grids)
        norm = nn.LayerNorm(LAYER_EPSILON, dtype=self.dtype, name="norm")
        return tuple(jnp.asarray(norm(grid)) for grid in grids)


class Gate(nn.Module):
    """z_c, grids `[B, h, w, d]` → `Gating` of `experts` [Eqs. 2–3].

    Attributes:
      experts: K.
      dtype: of the perceptron; parameters, and all from the cosines on, are float32.
    """

    experts: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, grids: Grids) -> Gating:
        batch, *_, width = grids[0].shape
        tokens = jnp.concatenate([grid.reshape(batch, -1, width) for grid in grids], axis=1)  # [B, N, d]
        tokens = nn.gelu(dense(width, dtype=self.dtype, name="in")(tokens), approximate=False)
        tokens = dense(width, dtype=self.dtype, name="out")(tokens)
        init = nn.with_logical_partitioning(nn.initializers.normal(width**-0.5), (None, DENSE[0]))  # every device asks for all experts
        queries = jnp.asarray(self.param("queries", init, (self.experts, width)))

        cosine = jnp.einsum("bnd,kd->bnk", _unit(tokens), _unit(queries), precision="highest")
        attention = jax.nn.softmax(cosine, axis=1)  # over the tokens of all scales
        score = (attention * cosine).sum(axis=1)
        return Gating(score, _maps(attention, grids), _maps(cosine, grids))


def gate_weights(score: Array, usage: Array, gamma: float = GAMMA, literal: bool = False) -> Array:
    """G: `score` `[…, K]` and `usage` `[K]` → `[…, K]`, float32 [Eq. 4]; convex, or, `literal`, as printed, where Σ_i G_i ≤ 1."""
    score, penalty = score.astype(jnp.float32), gamma * usage.astype(jnp.float32)
    if literal:
        return jax.nn.softmax(score) * jax.nn.softmax(-penalty)
    return jax.nn.softmax(score - penalty)


def token_weights(gating: Gating, usage: Array, shape: Sequence[int], gamma: float = GAMMA, literal: bool = False) -> Array:
    """G of every place of a grid of `shape` (h, w), `[B, h, w, K]`: our extension towards experts that are chosen by region.

    Eq. 4 with each token's cosines in place of the scores; each scale's map is brought to (h, w) bilinearly, and they are averaged. All of
    that is convex, so the weights are. Where a slice's cosines are one number an expert, they are `gate_weights` of its scores.
    """
    maps = [gate_weights(cosine, usage, gamma, literal) for cosine in gating.cosine]
    return jnp.stack([jax.image.resize(m, (len(m), *shape, m.shape[-1]), "bilinear") for m in maps]).mean(axis=0)


def updated_usage(usage: Array, weights: Array, decay: float = DECAY) -> Array:
    """c after a batch: `usage` `[K]` and the batch's G, `[B, …, K]`, → `[K]`, float32.

    What the paper calls usage frequency is read as the mean weight over slices, and places where weights have them: all experts run in
    training, so how often one is chosen is how much. Linear in the batch: over parts of one size on several devices, the mean of their c.
    """
    return decay * usage + (1 - decay) * weights.astype(jnp.float32).mean(axis=range(weights.ndim - 1))


def _unit(x: Array) -> Array:
    """x / |x| over the last dimension, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), SHORTEST**2))


def _maps(tokens: Array, grids: Grids) -> Grids:
    """`[B, N, K]` → the part of each of `grids`, `[B, h, w, K]`."""
    ends = list(accumulate(grid.shape[1] * grid.shape[2] for grid in grids))
    parts = jnp.split(tokens, ends[:-1], axis=1)
    return tuple(part.reshape(*grid.shape[:3], -1) for part, grid in zip(parts, grids, strict=True))
