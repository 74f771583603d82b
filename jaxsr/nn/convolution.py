"""Convolutions with named dimensions, so that one table in runtime/ decides how every kernel is laid over devices."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jaxsr.nn.layout import by_slices

# Names of the dimensions of every parameter in this package; runtime/mesh.py maps them to mesh axes.
KERNEL = ("kernel_height", "kernel_width", "conv_in", "conv_out")
DENSE = ("embed_in", "embed_out")


class Conv(nn.Conv):
    """flax's, its output laid over devices by slices."""

    def __call__(self, inputs: Array) -> Array:
        return by_slices(super().__call__(inputs))


class ConvTranspose(nn.ConvTranspose):
    """flax's, its output laid over devices by slices."""

    def __call__(self, inputs: Array) -> Array:
        return by_slices(super().__call__(inputs))


class Dense(nn.Dense):
    """flax's, its output laid over devices by slices."""

    def __call__(self, inputs: Array) -> Array:
        return by_slices(super().__call__(inputs))


def conv(
    features: int,
    size: int = 3,
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: tuple[int, int] | None = None,
    bias: bool = True,
    zero: bool = False,
    dtype: Any = None,
    name: str | None = None,
) -> Conv:
    """A `size` × `size` convolution, NHWC, padded by `dilation * (size // 2)` on every side as in PyTorch, or by `padding` (before, after)
    in both directions; its taps lie `dilation` pixels apart; `zero` starts it at zero."""
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return Conv(
        features,
        (size, size),
        (stride, stride),
        padding=[padding or (dilation * (size // 2),) * 2] * 2,
        kernel_dilation=(dilation, dilation),
        use_bias=bias,
        kernel_init=nn.with_logical_partitioning(init, KERNEL),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, KERNEL[-1:]),
        dtype=dtype,
        name=name,
    )


def conv_transpose(features: int, *, dtype: Any = None, name: str | None = None) -> ConvTranspose:
    """Twice the resolution by a transposed 4 × 4 convolution of stride 2: `[B, H, W, C]` → `[B, 2H, 2W, features]`.

    PyTorch's `ConvTranspose2d(C, features, 4, 2, 1)`, whose kernel is this one turned by 180°. A pixel of the result sums 4 of the 16 taps,
    so they start with 4 times the variance of a convolution's.
    """
    init = nn.initializers.variance_scaling(4.0, "fan_in", "truncated_normal")
    return ConvTranspose(
        features,
        (4, 4),
        (2, 2),
        padding=[(2, 2)] * 2,
        kernel_init=nn.with_logical_partitioning(init, KERNEL),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, KERNEL[-1:]),
        dtype=dtype,
        name=name,
    )


def dense(
    features: int, *, bias: bool = True, identity: bool = False, zero: bool = False, dtype: Any = None, name: str | None = None
) -> Dense:
    """A linear layer over the last dimension; `identity` starts it as that, where it has as many features in as out; `zero` at zero."""
    init = nn.initializers.zeros if zero else _identity if identity else nn.initializers.lecun_normal()
    return Dense(
        features,
        use_bias=bias,
        kernel_init=nn.with_logical_partitioning(init, DENSE),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, DENSE[-1:]),
        dtype=dtype,
        name=name,
    )


def _identity(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    return jnp.eye(*shape, dtype=dtype) if shape[0] == shape[1] else nn.initializers.lecun_normal()(key, shape, dtype)
