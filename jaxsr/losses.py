"""Losses that several recipes share: scalars, computed in float32 whatever comes in.

Every norm is a mean over all entries (ruling of the specification), so values do not depend on batch or image size.
"""

import jax.numpy as jnp
from jax import Array


def mean_absolute_error(output: Array, target: Array) -> Array:
    """mean |output − target| [SR3, Eq. 6 with p = 1]; arrays of one shape."""
    return jnp.abs(output.astype(jnp.float32) - target.astype(jnp.float32)).mean()


def squared_errors(output: Array, target: Array) -> Array:
    """`mean_squared_error` of each slice, `[B]`; arrays `[B, H, W, C]`."""
    return jnp.square(output.astype(jnp.float32) - target.astype(jnp.float32)).mean((1, 2, 3))


def mean_squared_error(output: Array, target: Array) -> Array:
    """mean (output − target)² [teacher, Eqs. 1 and 5]; arrays of one shape."""
    return jnp.square(output.astype(jnp.float32) - target.astype(jnp.float32)).mean()
