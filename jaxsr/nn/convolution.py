"""Convolutions with named dimensions, so that one table in runtime/ decides how every kernel is laid over devices."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

# Names of the dimensions of every parameter in this package; runtime/mesh.py maps them to mesh axes.
KERNEL = ("kernel_height", "kernel_width", "conv_in", "conv_out")
DENSE = ("embed_in", "embed_out")


def conv(
    features: int,
    size: int = 3,
    *,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    bias: bool = True,
    zero: bool = False,
    dtype: Any = None,
    name: str | None = None,
) -> nn.Conv:
    """A `size` × `size` convolution, NHWC, padded by `size // 2` on every side as in PyTorch, or by `padding` (before, after) in both
    directions; `zero` starts it at zero."""
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=[padding or (size // 2, size // 2)] * 2,
        use_bias=bias,
        kernel_init=nn.with_logical_partitioning(init, KERNEL),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, KERNEL[-1:]),
        dtype=dtype,
        name=name,
    )


def dense(features: int, *, bias: bool = True, identity: bool = False, dtype: Any = None, name: str | None = None) -> nn.Dense:
    """A linear layer over the last dimension; `identity` starts it as that, where it has as many features in as out."""
    init = _identity if identity else nn.initializers.lecun_normal()
    return nn.Dense(
        features,
        use_bias=bias,
        kernel_init=nn.with_logical_partitioning(init, DENSE),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, DENSE[-1:]),
        dtype=dtype,
        name=name,
    )


def _identity(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    return jnp.eye(*shape, dtype=dtype) if shape[0] == shape[1] else nn.initializers.lecun_normal()(key, shape, dtype)


def group_norm(groups: int, *, epsilon: float = 1e-5, dtype: Any = None, name: str | None = None) -> nn.GroupNorm:
    """Group normalisation whose statistics are float32 whatever `dtype` is."""
    return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype, force_float32_reductions=True, name=name)
