"""Convolution of complex feature maps that are stored as pairs of real channels [Trabelsi et al. 2018, §3.2].

W * x = (A * x_r − B * x_i) + i (A * x_i + B * x_r),      W = A + i B,  x = x_r + i x_i

The first half of the channels is x_r, the second x_i. The four products are one real convolution with the kernel

     A   B        from x_r to (real, imaginary)
    −B   A        from x_i

of half as many parameters as a free one: it turns and scales phases, and treats all of them alike.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array

from jaxsr.nn.convolution import KERNEL


class ComplexConv(nn.Module):
    """`[B, H, W, C]` → `[B, H, W, features]`, of C / 2 and features / 2 complex channels; padded so that the sides stay.

    Attributes:
      features: real channels of the output; even, as are the input's.
      size: of the kernel; odd.
      bias: whether there is one, complex.
    """

    features: int
    size: int = 3
    bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        if channels % 2 or self.features % 2:
            raise ValueError(f"complex channels are pairs of real ones: both numbers must be even, got {channels} in, {self.features} out")
        # Each result sums products with A and with B, so both have half the variance of a real kernel.
        init = nn.with_logical_partitioning(nn.initializers.variance_scaling(0.5, "fan_in", "truncated_normal"), KERNEL)
        shape = (self.size, self.size, channels // 2, self.features // 2)
        real, imaginary = (jnp.asarray(self.param(part, init, shape, jnp.float32)) for part in ("real", "imaginary"))
        kernel = jnp.block([[real, imaginary], [-imaginary, real]])  # [size, size, C, features]
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, KERNEL[-1:])
        bias = self.param("bias", zeros, (self.features,), jnp.float32) if self.bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        padding = [(self.size // 2, self.size // 2)] * 2
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y if bias is None else y + bias
