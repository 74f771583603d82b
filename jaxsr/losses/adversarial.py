"""What a discriminator D and a generator play for, of logits D(x) > 0 where x is taken for real.

                        discriminator                             generator

    hinge               [1 − D(x)]₊ + [1 + D(x̂)]₊                 −D(x̂)              [Lim & Ye 2017; Miyato et al. 2018, Eqs. 16 and 17]
    nonsaturating       softplus(−D(x)) + softplus(D(x̂))          softplus(−D(x̂))    [Goodfellow et al. 2014, Eq. 1 and §3]

softplus(−D) = −log sigmoid(D). To a discriminator that cannot tell, D = 0, they cost 2 and log 4, and its generator 0 and log 2.

    R1 = ½ |∇_x Σ D(x)|²        at real x, times γ                                   [Mescheder et al. 2018, Eq. 9]

Errors are means over the logits of a slice. R1 is not: the sum is over all of its logits, and the norm over all of its pixels, so that for
patches, of which a pixel is in as many whatever the size of the slice, γ must be the smaller the more pixels a slice has.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

Kind = Literal["hinge", "nonsaturating"]


def discriminator_errors(real: Array, fake: Array, kind: Kind) -> Array:
    """The discriminator's errors for logits of real and of generated slices, `[B, h, w, 1]` each: `[B]` float32.

    Raises:
      ValueError: for another `kind`.
    """
    of_real, of_fake = -real.astype(jnp.float32), fake.astype(jnp.float32)
    if kind == "hinge":
        return (jax.nn.relu(1 + of_real) + jax.nn.relu(1 + of_fake)).mean((1, 2, 3))
    if kind == "nonsaturating":
        return (jax.nn.softplus(of_real) + jax.nn.softplus(of_fake)).mean((1, 2, 3))
    raise _unknown(kind)


def generator_errors(fake: Array, kind: Kind) -> Array:
    """The generator's errors for logits of what it made, `[B, h, w, 1]`: `[B]` float32.

    Raises:
      ValueError: for another `kind`.
    """
    of_fake = -fake.astype(jnp.float32)
    if kind == "hinge":
        return of_fake.mean((1, 2, 3))
    if kind == "nonsaturating":
        return jax.nn.softplus(of_fake).mean((1, 2, 3))
    raise _unknown(kind)


def r1_penalty(logits_of: Callable[[Array], Array], x: Array) -> Array:
    """½ |∇_x Σ logits|² of each slice of `x` `[B, H, W, C]`: `[B]` float32.

    `logits_of`, `x` → logits, must not let slices of a batch see each other. What it closes over can be differentiated by.
    """
    gradient = jax.grad(lambda x: logits_of(x).astype(jnp.float32).sum())(x.astype(jnp.float32))
    return jnp.square(gradient).sum((1, 2, 3)) / 2


def _unknown(kind: str) -> ValueError:
    return ValueError(f"adversarial errors are 'hinge' or 'nonsaturating', got {kind!r}")
