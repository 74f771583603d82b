"""Pixel by pixel: absolute and squared errors, and the cosine, where a slice or a pixel's channels are one vector."""

from typing import Literal

import jax.numpy as jnp
from jax import Array

LEAST_SQUARE = 1e-8  # mean square of a vector, of entries about 1, below which it has no direction


def absolute(x: Array) -> Array:
    """|x| with the gradient 0 at 0, where that of `jnp.abs` is 1: what is right already is not pushed, and ties push neither way."""
    return x * jnp.sign(x)


def absolute_errors(output: Array, target: Array) -> Array:
    """mean |output − target| of each slice [SR3, Eq. 6 with p = 1], `[B]`; arrays `[B, H, W, C]`."""
    return absolute(output.astype(jnp.float32) - target.astype(jnp.float32)).mean((1, 2, 3))


def squared_errors(output: Array, target: Array) -> Array:
    """`mean_squared_error` of each slice, `[B]`; arrays `[B, H, W, C]`."""
    return jnp.square(output.astype(jnp.float32) - target.astype(jnp.float32)).mean((1, 2, 3))


def mean_squared_error(output: Array, target: Array) -> Array:
    """mean (output − target)² [teacher, Eqs. 1 and 5]; arrays of one shape."""
    return jnp.square(output.astype(jnp.float32) - target.astype(jnp.float32)).mean()


ERRORS = {"l1": absolute_errors, "l2": squared_errors}  # as configs name them


def cosine(x: Array, y: Array, per: Literal["slice", "pixel"] = "slice") -> Array:
    """cos θ(x, y) of MoEDiff-SR's Eqs. 14–16, for `[B, h, w, C]`: of all entries of a slice, `[B]`, or of a pixel's channels, `[B, h, w]`.

    Vectors whose mean square is below `LEAST_SQUARE` have a cosine that goes to zero with them, and the gradient is finite there.
    """
    axes = (1, 2, 3) if per == "slice" else (3,)
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    of_x, of_y = (jnp.maximum(jnp.square(z).mean(axes), LEAST_SQUARE) for z in (x, y))
    return (x * y).mean(axes) / jnp.sqrt(of_x * of_y)
