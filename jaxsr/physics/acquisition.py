"""Named acquisitions: what a scanner would have made of a high-resolution volume.

    y = |(b · x ⊗ p)↓ + n|        bias field b, slice profile p, k-space truncation ↓, complex noise n     [survey, Eq. 2]

An `Acquisition` states ranges; `acquire` draws from them with its key and returns the volume on the *acquired* grid. Bringing it back to
the high-resolution grid is the reader's business (volume/), so that training sees exactly what upscaling a file will see.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from jaxsr.physics.blur import Profile, excite
from jaxsr.physics.fields import bias_field
from jaxsr.physics.kspace import fourier_resample
from jaxsr.physics.noise import rician

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Acquisition:
    """A scanner's settings, with ranges where scanners differ.

    Attributes:
      voxel_size: mm along x, y, z (right, anterior, superior) of the acquired grid.
      snr: mean foreground signal over the noise's standard deviation a channel.
      bias: standard deviation of the logarithm of the bias field.
      slice_axis: 0, 1 or 2 for a two-dimensional acquisition with slices across that axis; None for a three-dimensional one.
      profile: slice profile of a two-dimensional acquisition; its FWHM is the voxel size along `slice_axis`.
    """

    voxel_size: tuple[float, float, float]
    snr: Range
    bias: Range
    slice_axis: int | None = None
    profile: Profile = "gaussian"


# The bias is what N4 leaves of it: volumes are corrected before they are paired, in `prepare` as in the papers.
ACQUISITIONS = {
    "1.5T": Acquisition(voxel_size=(2.0, 2.0, 2.0), snr=(20.0, 40.0), bias=(0.0, 0.02)),
    "3T": Acquisition(voxel_size=(1.5, 1.5, 1.5), snr=(30.0, 60.0), bias=(0.0, 0.03)),
}


def named_acquisition(name: str) -> Acquisition:
    """The acquisition called `name`; ValueError with the known names otherwise."""
    if name not in ACQUISITIONS:
        raise ValueError(f"unknown acquisition {name!r}; known: {', '.join(ACQUISITIONS)}")
    return ACQUISITIONS[name]


def acquired_shape(shape: tuple[int, int, int], voxel_size: tuple[float, float, float], acquisition: Acquisition) -> tuple[int, int, int]:
    """Voxels a side of the acquired grid over the same field of view; an axis already as coarse keeps its voxels."""
    return tuple(min(n, max(1, round(n * v / w))) for n, v, w in zip(shape, voxel_size, acquisition.voxel_size, strict=True))  # type: ignore[return-value]


@functools.partial(jax.jit, static_argnums=(2, 3))
def acquire(key: Array, volume: Array, voxel_size: tuple[float, float, float], acquisition: Acquisition) -> Array:
    """`volume` `[X, Y, Z]` (≥ 0, voxels of `voxel_size` mm) as `acquisition` would have measured it, `[X', Y', Z']`, same units."""
    keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(("bias", "strength", "noise", "snr"))}
    strength = jax.random.uniform(keys["strength"], minval=acquisition.bias[0], maxval=acquisition.bias[1])
    snr = jax.random.uniform(keys["snr"], minval=acquisition.snr[0], maxval=acquisition.snr[1])

    x, y, z = volume.shape
    shape = acquired_shape((x, y, z), voxel_size, acquisition)

    signal = volume * bias_field(keys["bias"], (x, y, z), strength)
    if (axis := acquisition.slice_axis) is not None:
        thickness = acquisition.voxel_size[axis] / voxel_size[axis]
        # Slices are excited one by one: through the slice there is no k-space, only the profile, sampled at the slice centres.
        signal = excite(signal, acquisition.profile, max(thickness, 1.0), shape[axis], axis)
    signal = fourier_resample(signal, shape)
    return rician(keys["noise"], signal, foreground_mean(volume) / snr)


def foreground_mean(volume: Array) -> Array:
    """Mean of the voxels above a tenth of the maximum: the signal that SNR refers to."""
    foreground = volume > 0.1 * volume.max()
    return jnp.where(foreground, volume, 0).sum() / jnp.maximum(foreground.sum(), 1)
