"""Whether intensities and their local variation are the target's [SPCDD, §5.3, named there without an equation]:

    histogram          Σ_k |P_x(k) − P_y(k)| h            P: cumulative sums of soft histograms, in bins of width h
    Wasserstein        mean |sort(x) − sort(y)|           the distance W_1 of the values, which the one above approaches from below
    local contrast     mean |s_x − s_y|                   s: standard deviation under a Gaussian window

The first two see all channels of a slice as one set of values, wherever they lie.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsr.losses.pixels import absolute

CONTRAST_WINDOW = 11  # pixels, of the local contrast: SSIM's
LEAST_VARIANCE = 1e-6  # of values about 1: a deviation of a two-thousandth of the window, and ten times the rounding of E x² − (E x)²


def soft_histogram(x: Array, bins: int = 64, low: float = -1.0, high: float = 1.0, weights: Array | None = None) -> Array:
    """Share of a slice's values in each of `bins` bins of equal width from `low` to `high`: `[B, bins]` of `[B, H, W, C]`, summing to 1.

    A value is shared between the two nearest bins, in proportion to how near their centres are (a hat function on each, together 1), so
    values at the centres have their usual histogram, and the mean of any others is that of their histogram. Beyond the outermost
    centres a value is in the outermost bin, without a gradient. Twice as wide hats are those of half as many bins.

    Args:
      weights: how much each value counts, not negative, broadcastable to `x`; for instance a mask. Where a slice has none, all shares are
        zero.

    Raises:
      ValueError: for no bins, or where `high` is not above `low`; names them.
    """
    if bins < 1 or not low < high:
        raise ValueError(f"a histogram needs bins and a range, got {bins} bins from {low} to {high}")
    place = jnp.clip((x.astype(jnp.float32) - low) / (high - low) * bins - 0.5, 0, bins - 1)  # in bins, from the first centre
    first = jnp.floor(place)
    weights = jnp.broadcast_to(jnp.float32(1) if weights is None else weights.astype(jnp.float32), x.shape)
    parts = jnp.stack([first + 1 - place, place - first], axis=-1) * weights[..., None]  # [B, H, W, C, 2], in `first` and in the next

    def add(first: Array, parts: Array) -> Array:
        return jnp.zeros((bins, 2)).at[first].add(parts)

    # A row at a time: grown pixel by pixel to a slice's background, a sum loses digits, and on a GPU its additions wait for each other.
    sums = jax.vmap(jax.vmap(add))(first.astype(jnp.int32), parts).sum(1)  # [B, bins, 2]
    total = weights.sum((1, 2, 3))[:, None]
    return (sums[..., 0] + jnp.roll(sums[..., 1], 1, axis=-1)) / jnp.where(total > 0, total, 1)  # the last bin has no next: it rolls a 0


def histogram_errors(x: Array, y: Array, bins: int = 64, low: float = -1.0, high: float = 1.0, weights: Array | None = None) -> Array:
    """Σ_k |P_x(k) − P_y(k)| h, the distance W_1 between the two soft histograms [SPCDD, §5.3]: `[B]` of `[B, H, W, C]`.

    Of values between the outermost centres it is at most `wasserstein_errors` and at least that less h, the width of a bin: equal at the
    centres, and where one slice is the other and a constant. Arguments as of `soft_histogram`.
    """
    shares_x, shares_y = (soft_histogram(z, bins, low, high, weights) for z in (x, y))
    return absolute(jnp.cumsum(shares_x - shares_y, axis=-1)).sum(-1) * (high - low) / bins


def wasserstein_errors(x: Array, y: Array) -> Array:
    """mean |sort(x) − sort(y)|, the distance W_1 between the values of two slices, exact [Villani 2003, §2.2]: `[B]` of `[B, H, W, C]`."""
    sorted_x, sorted_y = (jnp.sort(z.astype(jnp.float32).reshape(z.shape[0], -1)) for z in (x, y))
    return absolute(sorted_x - sorted_y).mean(-1)


def local_contrast_errors(x: Array, y: Array, window: int = CONTRAST_WINDOW, sigma: float = 1.5) -> Array:
    """mean |s_x − s_y| of `local_deviation` [SPCDD, §5.3], over the windows that lie inside: `[B]` of `[B, H, W, C]`.

    `jaxsr.evaluate`'s local contrast error before it is divided by the target's contrast, to within √`LEAST_VARIANCE`.

    Raises:
      ValueError: where a window is larger than the slices; says which.
    """
    return absolute(local_deviation(x, window, sigma) - local_deviation(y, window, sigma)).mean((1, 2, 3))


def local_deviation(x: Array, window: int, sigma: float) -> Array:
    """√(E x² − (E x)² + ε) under a Gaussian window, population: `[B, H, W, C]` → `[B, H − window + 1, W − window + 1, C]`, float32.

    The slope of a root is infinite at 0, where an image is flat: ε, `LEAST_VARIANCE`, bounds it.

    Args:
      window: pixels along each side. sigma: of the Gaussian, in pixels.
    """
    if window > min(x.shape[1:3]):
        raise ValueError(f"a window of {window} pixels does not fit slices of {x.shape[1]} × {x.shape[2]}: take a smaller one")
    x = x.astype(jnp.float32)
    mean, power = (_windowed(z, window, sigma) for z in (x, x**2))
    return jnp.sqrt(jnp.maximum(power - mean**2, 0) + LEAST_VARIANCE)


def _windowed(x: Array, window: int, sigma: float) -> Array:
    """Means under the Gaussian, as products with a band matrix along each axis."""
    offsets = np.arange(window) - (window - 1) / 2
    taps = np.exp(-(offsets**2) / (2 * sigma**2))
    taps /= taps.sum()
    down, along = (sum(tap * np.eye(n - window + 1, n, k) for k, tap in enumerate(taps)).astype(np.float32) for n in x.shape[1:3])
    return jnp.einsum("hi,wj,bijc->bhwc", down, along, x, precision="highest")
