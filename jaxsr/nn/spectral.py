"""A convolution whose kernel is divided by its largest singular value [Miyato et al. 2018, Eq. 8 and Algorithm 1].

    W̄ = W / σ(W),      σ(W) = uᵀ W v            W: the kernel as a matrix `[features, size² C]`
    u ← W v / |W v|,   v ← Wᵀ u / |Wᵀ u|        one power iteration a step; no gradient passes u and v:  ∂σ/∂W = u vᵀ

u and v follow the first singular vectors of W as it is trained. Algorithm 1 keeps u and begins with v; as in PyTorch both are kept and u
comes first, which is the same chain, and evaluation needs no iteration. They start 15 iterations on, as there: of random ones σ could be
next to nothing. Flax's `SpectralNorm` does not do: it fails on parameters whose dimensions are named, and iterates in evaluation as well.

σ is of the matrix, not of the convolution as a map of images. A pixel lies in at most ⌈size / stride⌉² patches, each of which the matrix
makes no longer, so the map lengthens an image at most ⌈size / stride⌉ times.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import Array

from jaxsr.nn.convolution import KERNEL

EPSILON = 1e-12  # least length by which a vector is divided, PyTorch's
WARM_UP = 15  # iterations on the initial kernel, PyTorch's


class SpectralConv(nn.Module):
    """`[B, H, W, C]` → `[B, H', W', features]`: `jaxsr.nn.convolution.conv` with W̄ for W, and the same parameters.

    u `[features]` and v `[size² C]`, float32, are the collection "spectral", which must be mutable with `train`: they go one iteration on.
    They depend on the weights and on nothing that is shown. Real and generated slices belong in one batch: two calls are two iterations.

    Attributes:
      features, size, stride, padding, dtype: as of `conv`.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: tuple[int, int] | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), KERNEL)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, KERNEL[-1:])
        kernel = jnp.asarray(self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features), jnp.float32))
        bias = self.param("bias", zeros, (self.features,), jnp.float32)

        matrix = kernel.reshape(-1, self.features)  # Wᵀ
        v = self.variable("spectral", "v", lambda: _started(matrix, self.make_rng("params")))
        u = self.variable("spectral", "u", lambda: _unit(_product(v.value, matrix)))
        if train:
            u.value, v.value = power_iteration(matrix, v.value)
        kernel = kernel / _product(_product(v.value, matrix), u.value)

        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        padding = [self.padding or (self.size // 2,) * 2] * 2
        return jax.lax.conv_general_dilated(x, kernel, (self.stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


def power_iteration(matrix: Array, v: Array) -> tuple[Array, Array]:
    """u `[O]` and the next v `[N]`, of length 1, for `matrix` Wᵀ `[N, O]`; without gradient."""
    matrix = jax.lax.stop_gradient(matrix)
    u = _unit(_product(v, matrix))
    return u, _unit(_product(matrix, u))


def _started(matrix: Array, key: Array) -> Array:
    v = _unit(jax.random.normal(key, matrix.shape[:1]))
    return jax.lax.fori_loop(0, WARM_UP, lambda _, v: power_iteration(matrix, v)[1], v)


def _unit(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), EPSILON)


def _product(x: Array, y: Array) -> Array:
    """In float32 in earnest: by default a GPU would round what it multiplies."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
