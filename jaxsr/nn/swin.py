"""Swin's transformer block: pixels that look at those of their window [Liu et al. 2021, §3.2].

    x' = x + W_o attention(norm(x)),      x'' = x' + W_2 gelu(W_1 norm(x')),      W_1 widens four times                      [Eq. 3]
    attention = softmax(q kᵀ / √d + B) v,      B_ij = table[p_i − p_j],      q, k, v = W norm(x) + b,      d channels a head  [Eq. 4]

Windows have w × w pixels; in a shifted block they begin at ⌊w / 2⌋, so that two blocks carry what one window knows into the next. i and j
see each other where, along both sides and with the shift s,

    ⌊(i − s) / w⌋ = ⌊(j − s) / w⌋.

Shifting leaves parts of windows at the borders. As in Fig. 4 the grid is rolled by s, which puts the first part behind the last, into one
window, and a mask keeps the two apart: as many windows as without the shift.

A grid that is no multiple of w is padded behind its last pixel, before it is rolled. The same mask keeps padding out of every softmax,
where public implementations let it in as a key like others: a window that reaches over the border is a smaller one, with no zeros in it,
and each is what it would be if it were the whole grid. Along a side not longer than w one window holds all: no shift, and no padding.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsr.nn.convolution import dense

EPSILON = 1e-5  # of both norms
WIDER = 4  # what the perceptron widens by


class SwinBlock(nn.Module):
    """`x` `[B, H, W, C]` → the same shape, for grids of any size: no parameter depends on it.

    Attributes:
      heads: of C / heads channels each.
      window: w, pixels on a side of a window.
      shifted: whether windows begin in the middle of those of a block that is not.
      dtype: of the computation; parameters, norms' statistics, scores, their bias and softmax are float32.

    Raises:
      ValueError: for channels that the heads do not divide.
    """

    heads: int
    window: int = 4
    shifted: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        if channels % self.heads:
            raise ValueError(f"attention needs channels that its heads divide, got {channels} channels and {self.heads} heads")
        sides = x.shape[1:3]
        windows = [min(self.window, side) for side in sides]
        shifts = [self.window // 2 if self.shifted and side > self.window else 0 for side in sides]

        table = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.truncated_normal(0.02), (None, None, None)),
            (2 * self.window - 1, 2 * self.window - 1, self.heads),
        )
        # XLA's attention adds the bias to float32 scores whatever q and k are in; windows are too small to gain by another.
        attention = partial(
            jax.nn.dot_product_attention,
            bias=_relative(jnp.asarray(table), windows),
            mask=_seen(sides, windows, shifts),
            implementation="xla",
        )
        qkv = dense(3 * channels, dtype=self.dtype, name="qkv")(_norm(self.dtype, "norm1")(x))
        qkv = _split(qkv, windows, shifts)  # [B, M, N, 3 C]
        q, k, v = jnp.moveaxis(qkv.reshape(*qkv.shape[:3], 3, self.heads, -1), 3, 0)  # [B, M, N, heads, d] each
        y = jax.vmap(attention)(q, k, v).reshape(*qkv.shape[:3], channels)
        x = x + dense(channels, dtype=self.dtype, name="out")(_join(y, sides, windows, shifts))

        y = dense(WIDER * channels, dtype=self.dtype, name="mlp_in")(_norm(self.dtype, "norm2")(x))
        return x + dense(channels, dtype=self.dtype, name="mlp_out")(nn.gelu(y, approximate=False))


def _split(x: Array, windows: Sequence[int], shifts: Sequence[int]) -> Array:
    """`[B, H, W, C]` → `[B, M, N, C]`: its M windows of N pixels, both row by row."""
    x = jnp.pad(x, [(0, 0), *((0, -side % window) for side, window in zip(x.shape[1:3], windows, strict=True)), (0, 0)])
    x = jnp.roll(x, [-shift for shift in shifts], (1, 2))
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // windows[0], windows[0], width // windows[1], windows[1], channels)
    return x.swapaxes(2, 3).reshape(batch, -1, windows[0] * windows[1], channels)


def _join(x: Array, sides: Sequence[int], windows: Sequence[int], shifts: Sequence[int]) -> Array:
    """What `_split` made of a grid of `sides` → that grid."""
    rows, columns = (-(-side // window) for side, window in zip(sides, windows, strict=True))
    x = x.reshape(len(x), rows, columns, *windows, x.shape[-1]).swapaxes(2, 3)
    x = x.reshape(len(x), rows * windows[0], columns * windows[1], -1)
    return jnp.roll(x, shifts, (1, 2))[:, : sides[0], : sides[1]]


def _relative(table: Array, windows: Sequence[int]) -> Array:
    """B: `[2w − 1, 2w − 1, heads]` → `[1, heads, N, N]`, the entry of each pair of pixels' offset, which is zero at [w − 1, w − 1]."""
    offsets = [np.subtract.outer(np.arange(n), np.arange(n)) + len(table) // 2 for n in windows]
    bias = table[offsets[0][:, None, :, None], offsets[1][None, :, None, :]]  # [h, w, h, w, heads]
    return jnp.moveaxis(bias.reshape(*[windows[0] * windows[1]] * 2, -1), -1, 0)[None]


def _seen(sides: Sequence[int], windows: Sequence[int], shifts: Sequence[int]) -> Array | None:
    """Which pixels of a window see each other, `[M, 1, N, N]`; None: all do."""
    along = []
    for side, window, shift in zip(sides, windows, shifts, strict=True):
        place = np.arange(side + -side % window)
        part = np.where(place < side, (place - shift) // window, -2)  # −1 is what lies before the shift; padding has a part of its own
        part = np.roll(part, -shift).reshape(-1, window)
        along.append(part[:, :, None] == part[:, None, :])  # [windows along this side, window, window]
    seen = along[0][:, None, :, None, :, None] & along[1][None, :, None, :, None, :]  # [rows, columns, h, w, h, w]
    return None if seen.all() else jnp.asarray(seen.reshape(len(along[0]) * len(along[1]), 1, *[windows[0] * windows[1]] * 2))


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(EPSILON, dtype=dtype, name=name)  # its statistics are float32
