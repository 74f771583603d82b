"""The spatial transformer of Stable Diffusion v1: pixels that look at each other and at a context [Rombach et al. 2022, §3.3, App. E.2.1].

y = x + W_out T_depth(… T_1(W_in norm(x)))
T(t):   t ← t + self(norm(t)),   t ← t + cross(norm(t), context),   t ← t + feedforward(norm(t))
attention(t, s) = W_o softmax(q kᵀ / √d) v + b,      q = W_q t,  k = W_k s,  v = W_v s,  d channels a head      [Vaswani et al. 2017, Eq. 1]
feedforward(t) = W_2 (a ⊙ gelu(b)),      (a, b) = W_1 t,  each 4 times as wide as t                             [GEGLU: Shazeer 2020, Eq. 6]
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.attend import attend
from jaxsr.nn.convolution import conv, dense
from jaxsr.nn.norm import GroupNorm

GROUP_EPSILON = 1e-6  # of the norm over pixels; the norms over a token's features have another
LAYER_EPSILON = 1e-5
WIDER = 4  # what a feed-forward widens by


class Attention(nn.Module):
    """`tokens` `[B, N, C]` look at `context` `[B, M, D]` → `[B, N, C]`. Only the last of the four layers has a bias.

    Attributes:
      heads: of C / heads channels each.
    """

    heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Array, context: Array) -> Array:
        channels = tokens.shape[-1]

        def project(x: Array, name: str) -> Array:
            x = dense(channels, bias=False, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], self.heads, channels // self.heads)

        q, k, v = project(tokens, "query"), project(context, "key"), project(context, "value")
        seen = attend(q, k, v)  # [B, N, heads, d]; softmax in float32
        return jnp.asarray(dense(channels, dtype=self.dtype, name="out")(seen.reshape(tokens.shape)))


class FeedForward(nn.Module):
    """`[B, N, C]` → the same shape, every token by itself."""

    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        channels = tokens.shape[-1]
        a, b = jnp.split(dense(2 * WIDER * channels, dtype=self.dtype, name="in")(tokens), 2, axis=-1)
        return jnp.asarray(dense(channels, dtype=self.dtype, name="out")(a * nn.gelu(b, approximate=False)))


class TransformerBlock(nn.Module):
    """T: `tokens` `[B, N, C]`, `context` `[B, M, D]` → `[B, N, C]`."""

    heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Array, context: Array) -> Array:
        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(LAYER_EPSILON, dtype=self.dtype, name=name)  # its statistics are float32

        normed = norm("norm1")(tokens)
        tokens += Attention(self.heads, self.dtype, name="self")(normed, normed)
        tokens += Attention(self.heads, self.dtype, name="cross")(norm("norm2")(tokens), context)
        return tokens + FeedForward(self.dtype, name="feedforward")(norm("norm3")(tokens))


class SpatialTransformer(nn.Module):
    """`x` `[B, H, W, C]`, `context` `[B, M, D]` → `[B, H, W, C]`.

    Attributes:
      heads: of every attention, of C / heads channels each.
      depth: transformer blocks.
      groups: of the normalisation in front.
    """

    heads: int = 8
    depth: int = 1
    groups: int = 32
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        batch, height, width, channels = x.shape
        if channels % self.heads:
            raise ValueError(f"attention needs channels that its heads divide, got {channels} channels and {self.heads} heads")
        t = GroupNorm(self.groups, epsilon=GROUP_EPSILON, dtype=self.dtype, name="norm")(x)
        t = conv(channels, 1, dtype=self.dtype, name="in")(t).reshape(batch, height * width, channels)
        for i in range(self.depth):
            t = TransformerBlock(self.heads, self.dtype, name=f"block{i}")(t, context)
        return x + conv(channels, 1, dtype=self.dtype, name="out")(t.reshape(x.shape))
