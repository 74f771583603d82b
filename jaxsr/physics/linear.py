"""Linear operators with their adjoints, for what solves y = H x.

Over the reals: ⟨u, v⟩ = Re Σ ū v, so that ⟨H x, y⟩ = ⟨x, H* y⟩ for real x and complex y as well. JAX derives the transpose from the forward
program, without conjugation: H* y is the conjugate of the transpose of ȳ.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxsr.physics.kspace import Window, truncate


class LinearOperator(NamedTuple):
    """H and H*, both jitted, with what they take and give. `forward` takes `source`, gives `target`; `adjoint` the other way round."""

    forward: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    source: jax.ShapeDtypeStruct
    target: jax.ShapeDtypeStruct


def linear_operator(forward: Callable[[Array], Array], shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> LinearOperator:
    """The record of a function that is linear over the reals, from its shape of input alone. Forward errors are those of `forward`."""
    source = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
    target = jax.eval_shape(forward, source)

    def adjoint(y: Array) -> Array:
        (x,) = jax.linear_transpose(forward, source)(jnp.conj(y).astype(target.dtype))
        return jnp.conj(x)  # type: ignore[no-any-return]

    return LinearOperator(jax.jit(forward), jax.jit(adjoint), source, jax.ShapeDtypeStruct(target.shape, target.dtype))


def there_and_back(shape: Sequence[int], voxel_size: Sequence[float], acquired: Sequence[float], window: Window = "box") -> LinearOperator:
    """From voxels of `voxel_size` mm to those of `acquired` mm, through k-space, and back to the same grid by zero filling.

    Any number of axes; one that is as coarse already stays as it is.
    """
    coarse = coarser_shape(shape, voxel_size, acquired)
    return linear_operator(lambda x: truncate(x, coarse, window), shape)


def coarser_shape(shape: Sequence[int], voxel_size: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """Voxels a side over the same field of view with voxels of `wanted` mm; an axis already as coarse keeps its voxels."""
    return tuple(min(n, max(1, round(n * v / w))) for n, v, w in zip(shape, voxel_size, wanted, strict=True))
