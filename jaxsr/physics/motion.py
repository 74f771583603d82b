"""A head that moves while k-space is filled, and lines that differ in gain.

Motion. The lines along a phase-encoding axis are acquired one after the other, from the lowest k to the highest, the others all at once
(2-D: of every slice in turn). The head lies in pose p during an interval of that, so the lines acquired then are those of the moved head:

    Y_k = (F T_p(k) x)_k,      T_p a rotation about the centre of the field of view and a shift, p(k) constant but for a few jumps

and the pose in which k = 0 is acquired is the one that the image shows: its T is the identity.

T is three plane rotations, each of three shears [Unser 1995; Eddy 1996], and a shift, all by phases in Fourier space,

    R(θ) = shear_a(−tan θ/2) shear_b(sin θ) shear_a(−tan θ/2),

exact for band-limited volumes: nothing is blurred, θ = 0 is the identity, −θ the inverse. Periodic at the edges of the field of view.

Ghosts. Where every n-th line has another gain or phase (echo trains, eddy currents), the image is a sum of itself and of n − 1 copies that
are j/n of the field of view away, as Σ_j exp(2πi jk/n) is n where n divides k, and 0 elsewhere:

    Y_k = X_k (1 − g + n g [n divides k]),      y(r) = x(r) + g Σ_{0<j<n} x(r + j FOV/n),      g complex.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsr.physics.kspace import as_complex, modulate_lines


class Poses(NamedTuple):
    """Where the head lies, and when.

    times: `[P − 1]` increasing in 0…1, the moments between poses; k = 0 is acquired at ½.
    angles: `[P, 3]` radians, about the first, second and third axis.
    shifts: `[P, 3]` mm.
    """

    times: Array
    angles: Array
    shifts: Array


def draw_poses(key: Array, jumps: int, rotation: Array | float, translation: Array | float) -> Poses:
    """`jumps` + 1 poses, angles normal with standard deviation `rotation` degrees about each axis, shifts with `translation` mm along each.

    Jumps come at random; the pose in which k = 0 is acquired is the identity.
    """
    when, angles, shifts = jax.random.split(key, 3)
    times = jnp.sort(jax.random.uniform(when, (jumps,)))
    moved = (jnp.arange(jumps + 1) != (times <= 0.5).sum())[:, None]
    angles = jnp.deg2rad(rotation) * jax.random.normal(angles, (jumps + 1, 3))
    shifts = translation * jax.random.normal(shifts, (jumps + 1, 3))
    return Poses(times, jnp.where(moved, angles, 0), jnp.where(moved, shifts, 0))


def move_during(acquire: Callable[[Array], Array], volume: Array, poses: Poses, voxel_size: tuple[float, ...], axis: int) -> Array:
    """What `acquire` (linear, volume → image) sees of a moving `volume [X, Y, Z]`, the lines along `axis` of the image; complex."""

    def lines(pose: tuple[Array, Array, Array]) -> Array:
        index, angles, shifts = pose
        seen = as_complex(acquire(rigid(volume, angles, shifts, voxel_size)))
        return modulate_lines(seen, _during(poses.times, index, seen.shape[axis]), axis)

    # One after the other, so that memory holds one moved volume.
    return jax.lax.map(lines, (jnp.arange(len(poses.angles)), poses.angles, poses.shifts)).sum(0)


@functools.partial(jax.jit, static_argnums=3)
def rigid(image: Array, angles: Array | Sequence[float], shifts: Array | Sequence[float], voxel_size: tuple[float, ...]) -> Array:
    """A real volume `[X, Y, Z]` or slice `[X, Y]` rotated about its centre, then shifted; same shape, linear.

    Args:
      angles: radians about each axis of a volume, the first axis first, positive from the next axis to the one after it; one for a slice.
      shifts: mm along each axis.
      voxel_size: mm along each axis.
    """
    planes = ((1, 2), (2, 0), (0, 1)) if image.ndim == 3 else ((0, 1),)
    for angle, (a, b) in zip(jnp.asarray(angles), planes, strict=True):
        image = _rotate(image, angle, a, b, voxel_size[b] / voxel_size[a])
    for axis in range(image.ndim):
        image = _shift(image, jnp.asarray(shifts)[axis] / voxel_size[axis], axis)
    return image


@functools.partial(jax.jit, static_argnums=(1, 3))
def ghost(image: Array, every: int, intensity: Array | float, axis: int) -> Array:
    """`image` with n − 1 ghosts along `axis`, n = `every`, each `intensity` (real or complex) times as strong as itself; complex.

    Raises:
      ValueError: where `every` is below 2.
    """
    if every < 2:
        raise ValueError(f"ghosts come from every second, third, … line, got every {every}")
    k = np.rint(np.fft.fftfreq(image.shape[axis]) * image.shape[axis])
    return modulate_lines(image, 1 + jnp.asarray(intensity) * (every * (k % every == 0) - 1), axis)


def _during(times: Array, pose: Array, lines: int) -> Array:
    """1 for the lines acquired in this pose, else 0, `[lines]`, frequencies as `fftfreq` orders them."""
    moment = np.fft.fftfreq(lines) + 0.5  # of k = 0: ½
    before = (times <= moment[:, None]).sum(1)
    return (before == pose).astype(jnp.float32)


def _rotate(image: Array, angle: Array, a: int, b: int, ratio: float) -> Array:
    """From axis `a` to axis `b`, whose voxels are `ratio` times as large as those of `a`."""
    along_a, along_b = -jnp.tan(angle / 2) * ratio, jnp.sin(angle) / ratio
    for axis, other, slope in ((a, b, along_a), (b, a, along_b), (a, b, along_a)):
        n, shape = image.shape[other], [1] * image.ndim
        shape[other] = n
        image = _shift(image, slope * (np.arange(n) - (n - 1) / 2).reshape(shape), axis)
    return image


def _shift(image: Array, voxels: Array, axis: int) -> Array:
    """Moves the content by `voxels` (a scalar, or an array that broadcasts with 1 along `axis`) towards higher indices."""
    n = image.shape[axis]
    shape = [1] * image.ndim
    shape[axis] = n // 2 + 1
    phase = jnp.exp(-2j * np.pi * np.fft.rfftfreq(n).reshape(shape) * voxels)
    return jnp.fft.irfft(jnp.fft.rfft(image, axis=axis) * phase, n=n, axis=axis).astype(image.dtype)
