"""Whether edges are where they should be, by differences of neighbours:

    gradient consistency     mean |∇x − ∇y|           ∇: forward differences
    edges                    mean (S(x) − S(y))²      S: both components of Sobel's operator     [MoEDiff-SR, Eq. 11, first term]

The first is a loss of SPCDD [§5.3], which names it without an equation.
"""

import jax.numpy as jnp
from jax import Array

from jaxsr.losses.pixels import absolute


def gradient_errors(x: Array, y: Array) -> Array:
    """mean |∇x − ∇y| over pixels, channels and both components [SPCDD, §5.3]: `[B]` of `[B, H, W, C]`, sides of two pixels or more.

    Forward differences down the rows and along the columns, each averaged over the pixels that have a next one. No constant is seen; a
    ramp of slope s a pixel along one axis costs s / 2.
    """
    difference = x.astype(jnp.float32) - y.astype(jnp.float32)
    down, along = (absolute(jnp.diff(difference, axis=axis)).mean((1, 2, 3)) for axis in (1, 2))
    return (down + along) / 2


def sobel_errors(x: Array, y: Array) -> Array:
    """mean (S(x) − S(y))² over pixels, channels and both components [MoEDiff-SR, Eq. 11, first term]: `[B]` of `[B, h, w, C]`."""
    return jnp.square(sobel(x.astype(jnp.float32) - y.astype(jnp.float32))).mean((1, 2, 3, 4))


def sobel(x: Array) -> Array:
    """Sobel's derivatives down the rows and along the columns: `[B, h, w, C]` → `[B, h, w, C, 2]`, float32.

    −1 0 1 along the derivative and 1 2 1 across it, so eight times the slope a pixel. Beyond the border its pixels are repeated: of three
    taps that is the default of `scipy.ndimage.sobel`, 'reflect'.
    """
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    down = x[:, 2:] - x[:, :-2]  # [B, h, w + 2, C]
    along = x[:, :, 2:] - x[:, :, :-2]  # [B, h + 2, w, C]
    return jnp.stack(
        [down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:], along[:, :-2] + 2 * along[:, 1:-1] + along[:, 2:]],
        axis=-1,
    )
