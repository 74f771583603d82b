"""What accompanies a rendered head: the target's bias field and gradient nonlinearity, and what was taken off before it was published."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxsr.data.anatomy.deformation import Variation
from jaxsr.physics.fields import bias_field
from jaxsr.physics.gradients import random_displacement

WHOLE, STRIPPED, DEFACED = range(3)


def draw_log_bias(key: Array, inside: Array, variation: Variation) -> Array:
    """log b `[X, Y, Z]`, smooth, of mean zero over the head, `inside`, as N4's is; its strength is drawn from the variation's range."""
    low, high = variation.bias
    field, strength = jax.random.split(key)
    log = jnp.log(bias_field(field, inside.shape, jax.random.uniform(strength, minval=low, maxval=high)))
    return log - jnp.mean(log, where=inside)


def draw_gradient(key: Array, shape: tuple[int, int, int], voxel_size: float, variation: Variation) -> Array:
    """Displacement `[X, Y, Z, 3]` in mm along right, anterior, superior; its longest vector is drawn from the variation's range."""
    low, high = variation.nonlinearity
    field, strength = jax.random.split(key)
    return random_displacement(field, shape, (voxel_size,) * 3, jax.random.uniform(strength, minval=low, maxval=high))


def draw_state(key: Array, variation: Variation) -> Array:
    """`WHOLE`, `STRIPPED` or `DEFACED`, by the variation's shares."""
    number = jax.random.uniform(key)
    return jnp.where(number < variation.stripped, STRIPPED, jnp.where(number < variation.stripped + variation.defaced, DEFACED, WHOLE))


def kept(key: Array, state: Array, distance: Array, points: Array) -> Array:
    """Where a head in this `state` still has signal, bool `[...]`.

    Args:
      distance: mm from the brain's surface, negative inside, `[...]`. A skull is stripped 0 to 3 mm from the brain.
      points: mm from the centre of the head, `[3, ...]`. A face is what lies before and below a slant, over 10 mm from the brain.
    """
    margin, slant, offset = jax.random.uniform(key, (3,), minval=jnp.array([0.0, 0.6, 60.0]), maxval=jnp.array([3.0, 1.0, 75.0]))
    face = (jnp.cos(slant) * points[1] - jnp.sin(slant) * points[2] > offset) & (distance > 10.0)
    return jnp.where(state == STRIPPED, distance < margin, ~((state == DEFACED) & face))
