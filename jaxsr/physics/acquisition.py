"""Simulated acquisitions: what a scanner would have made of a high-resolution volume.

    y = |W ((Γ(b · T x^γ) ⊗ κ ⊗ p)↓ + n)|      [survey, Eq. 2]

    x^γ    another contrast                    ↓    k-space truncated to the acquired voxels
    T      the pose, as lines are acquired     n    complex noise, coil by coil
    b      the bias field of the coils         W    what is made of the samples: a window, partial Fourier
    κ, p   point spread and slice profile      Γ    the warp of nonlinear gradients

An `Acquisition` states ranges; `acquire` draws from them with its key and returns the volume on the *acquired* grid. Bringing it back to
the high-resolution grid is the reader's business (volume/), so that training sees exactly what upscaling a file will see. All between
x^γ and n is linear: `linear_part` is that H, its draws made with the same key, and its adjoint.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsr.physics.blur import excite, gaussian_blur
from jaxsr.physics.contrast import gamma
from jaxsr.physics.fields import bias_field
from jaxsr.physics.gradients import invert, random_displacement, unwarp
from jaxsr.physics.kspace import apply_window, fourier_resample, partial_fourier, sampled_lines, window_weights
from jaxsr.physics.linear import LinearOperator, coarser_shape, linear_operator
from jaxsr.physics.motion import Poses, draw_poses, ghost, move_during
from jaxsr.physics.noise import noncentral_chi
from jaxsr.physics.protocol import SIZES, Acquisition, known_acquisitions, load_acquisition, named_acquisition

__all__ = [
    "Acquisition",
    "acquire",
    "acquired_shape",
    "describe_draw",
    "foreground_mean",
    "known_acquisitions",
    "linear_part",
    "load_acquisition",
    "named_acquisition",
    "settle",
]

Shape = tuple[int, int, int]
VoxelSize = tuple[float, float, float]

# Append only: a place is a key.
_KEYS = ("bias", "strength", "noise", "snr", "sizes", "gamma", "blur", "motion", "poses", "ghosting", "warp", "field")


def acquired_shape(shape: Shape, voxel_size: VoxelSize, acquisition: Acquisition) -> Shape:
    """Voxels a side of the acquired grid over the same field of view; an axis already as coarse keeps its voxels.

    Raises:
      ValueError: where the acquisition's voxel size has a range: `settle` it, or ask for its `typical`.
    """
    return coarser_shape(shape, voxel_size, acquisition.spacing)  # type: ignore[return-value]


def settle(key: Array, acquisition: Acquisition) -> Acquisition:
    """The acquisition with each range of sizes settled at one of 5 equidistant values, drawn by `key`: what decides shapes is static.

    Raises:
      ValueError: where there is something to draw and the key is traced (in jit or vmap).
    """
    if acquisition.settled:
        return acquisition
    if isinstance(key, jax.core.Tracer):
        raise ValueError(
            f"the acquisition {acquisition.name} draws its voxel size, which cannot be done inside jit or vmap: settle it outside"
        )
    drawn = np.asarray(jax.random.randint(_key(key, "sizes"), (len(acquisition.ranges),), 0, SIZES)) / (SIZES - 1)
    share = {ends: round(ends[0] + float(u) * (ends[1] - ends[0]), 4) for ends, u in zip(acquisition.ranges, drawn, strict=True)}
    return acquisition.with_sizes(share)


def acquire(key: Array, volume: Array, voxel_size: VoxelSize, acquisition: Acquisition) -> Array:
    """`volume` `[X, Y, Z]` (≥ 0, voxels of `voxel_size` mm) as `acquisition` would have measured it, `[X', Y', Z']`, same units.

    Jitted; a batch by `jax.vmap` over keys and volumes, where the voxel size has no range.
    """
    return _acquire(key, volume, voxel_size, settle(key, acquisition))


def linear_part(key: Array, shape: Shape, voxel_size: VoxelSize, acquisition: Acquisition) -> LinearOperator:
    """H: a volume of `shape` → the image, as `acquire` draws it with this key, without contrast change, noise and magnitude.

    Complex where partial Fourier, motion or ghosts make it so.
    """
    settled = settle(key, acquisition)
    reconstruct = _reconstruct(settled)
    sample = functools.partial(_sample, key, voxel_size=voxel_size, acquisition=settled)
    return linear_operator(lambda x: reconstruct(sample(x)), shape)


def describe_draw(key: Array, acquisition: Acquisition) -> dict[str, Any]:
    """What `acquire` draws with this key, as JSON can hold it, of what is on; fields and noise go by the key."""
    settled = settle(key, acquisition)
    facts: dict[str, Any] = {"voxel_size": list(settled.voxel_size)}
    if settled.slice_axis is not None:
        facts["gap"] = settled.gap
    facts |= {name: round(float(value), 6) for name, value in _draw(key, settled).items()}
    if settled.motion:
        facts["poses"] = {name: np.asarray(value).round(6).tolist() for name, value in _poses(key, settled)._asdict().items()}
    return facts


def foreground_mean(volume: Array) -> Array:
    """Mean of the voxels above a tenth of the maximum: the signal that SNR refers to.

    A voxel more than twice as bright as the brightest of its neighbours along the axes is hot: it counts as that one.
    """
    beside = functools.reduce(jnp.maximum, (jnp.roll(volume, step, axis) for axis in range(volume.ndim) for step in (1, -1)))
    top = jnp.where(volume > 2 * beside, beside, volume).max()
    foreground = volume > 0.1 * top
    return jnp.where(foreground, jnp.minimum(volume, top), 0).sum() / jnp.maximum(foreground.sum(), 1)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _acquire(key: Array, volume: Array, voxel_size: VoxelSize, acquisition: Acquisition) -> Array:
    draw = _draw(key, acquisition)
    if "gamma" in draw:
        volume = gamma(volume, draw["gamma"])
    signal = _sample(key, volume, voxel_size=voxel_size, acquisition=acquisition)
    reconstruct = _reconstruct(acquisition)
    if "snr" not in draw:
        return jnp.abs(reconstruct(signal))
    sigma = foreground_mean(volume) / draw["snr"]
    if reconstruct is _as_it_is:
        return noncentral_chi(_key(key, "noise"), signal, sigma, acquisition.coils)
    sigma = sigma / _noise_left(acquisition, signal.shape)
    return noncentral_chi(_key(key, "noise"), signal, sigma, acquisition.coils, reconstruct)


def _sample(key: Array, volume: Array, *, voxel_size: VoxelSize, acquisition: Acquisition) -> Array:
    """What is sampled, as an image on the acquired grid: linear in `volume`."""
    draw = _draw(key, acquisition)
    x, y, z = volume.shape
    shape = acquired_shape((x, y, z), voxel_size, acquisition)
    # Fields stay where they are in the scanner, however the head moves.
    bias = bias_field(_key(key, "bias"), (x, y, z), draw["bias"]) if "bias" in draw else None
    bent = None
    if "warp" in draw:  # `unwarp` by the inverse is `warp`, and the inverse is found once
        bent = invert(random_displacement(_key(key, "field"), (x, y, z), voxel_size, draw["warp"]), voxel_size)

    def see(signal: Array) -> Array:
        if bias is not None:
            signal = signal * bias
        if bent is not None:
            signal = unwarp(signal, bent, voxel_size)
        if "blur" in draw:
            axes = acquisition.in_plane
            signal = gaussian_blur(signal, [draw["blur"] / voxel_size[axis] for axis in axes], axes)
        if (axis := acquisition.slice_axis) is not None:
            thickness = max(float(acquisition.voxel_size[axis]) / voxel_size[axis], 1.0)  # type: ignore[arg-type]
            # Slices are excited one by one: through the slice there is no k-space, only the profile, sampled at the slice centres.
            signal = excite(signal, acquisition.profile, thickness, shape[axis], axis, acquisition.time_bandwidth)
        return fourier_resample(signal, shape)

    if acquisition.motion is None:
        image = see(volume)
    else:
        image = move_during(see, volume, _poses(key, acquisition), voxel_size, acquisition.motion.axis)
    if (ghosting := acquisition.ghosting) is not None:
        image = ghost(image, ghosting.every, draw["ghost"] * jnp.exp(1j * draw["ghost_phase"]), ghosting.axis)
    return image


def _reconstruct(acquisition: Acquisition) -> Callable[[Array], Array]:
    """From what was sampled, and its noise, to the image: linear over the reals."""
    partial = acquisition.partial_fourier
    if acquisition.window == "box" and partial is None:
        return _as_it_is

    def reconstruct(image: Array) -> Array:
        if partial is not None:
            image = partial_fourier(image, partial.fraction, partial.axis, partial.fill)
        return apply_window(image, acquisition.window, acquisition.in_plane)

    return reconstruct


def _as_it_is(image: Array) -> Array:
    return image


def _noise_left(acquisition: Acquisition, shape: tuple[int, ...]) -> float:
    """The standard deviation that white noise of 1 a channel has in the real channel after `_reconstruct`.

    The real part at k is (N(k) + N̄(−k)) / 2. Two independent samples leave it the variance of one channel; a sample whose mirror image is
    its conjugate leaves it both channels'. Hence the root of the mean over k-space of W² times 1, or 2 at lines that conjugates fill and
    those that they are taken from, or 0 at lines that are zero.
    """
    axes = acquisition.in_plane
    power = window_weights(acquisition.window, [shape[axis] for axis in axes]).astype(np.float64) ** 2
    partial = acquisition.partial_fourier
    if partial is not None:
        lines = sampled_lines(shape[partial.axis], partial.fraction)
        mirrored = np.roll(lines[::-1], 1)
        share = np.where(lines & mirrored, 1, np.where(lines | mirrored, 2, 0)) if partial.fill == "conjugate" else lines
        power = power * share.reshape([-1 if axis == partial.axis else 1 for axis in axes])
    return float(np.sqrt(power.mean()))


def _draw(key: Array, acquisition: Acquisition) -> dict[str, Array]:
    """The numbers drawn from ranges, of what is on."""

    def uniform(name: str, ends: tuple[float, float]) -> Array:
        return jax.random.uniform(_key(key, name), minval=ends[0], maxval=ends[1])

    draw = {}
    if acquisition.bias[1] > 0:
        draw["bias"] = uniform("strength", acquisition.bias)
    if acquisition.snr is not None:
        draw["snr"] = uniform("snr", acquisition.snr)
    if acquisition.gamma != (1.0, 1.0):
        draw["gamma"] = jnp.exp(uniform("gamma", (float(np.log(acquisition.gamma[0])), float(np.log(acquisition.gamma[1])))))
    if acquisition.blur[1] > 0:
        draw["blur"] = uniform("blur", acquisition.blur)
    if acquisition.warp[1] > 0:
        draw["warp"] = uniform("warp", acquisition.warp)
    if acquisition.motion is not None:
        rotation, translation = jax.random.uniform(_key(key, "motion"), (2,))
        draw["rotation"] = _between(acquisition.motion.rotation, rotation)
        draw["translation"] = _between(acquisition.motion.translation, translation)
    if acquisition.ghosting is not None:
        strength, phase = jax.random.uniform(_key(key, "ghosting"), (2,))
        draw["ghost"] = _between(acquisition.ghosting.intensity, strength)
        draw["ghost_phase"] = 2 * jnp.pi * phase
    return draw


def _poses(key: Array, acquisition: Acquisition) -> Poses:
    assert acquisition.motion
    draw = _draw(key, acquisition)
    return draw_poses(_key(key, "poses"), acquisition.motion.jumps, draw["rotation"], draw["translation"])


def _between(ends: tuple[float, float], share: Array) -> Array:
    return ends[0] + share * (ends[1] - ends[0])


def _key(key: Array, purpose: str) -> Array:
    return jax.random.fold_in(key, _KEYS.index(purpose))
