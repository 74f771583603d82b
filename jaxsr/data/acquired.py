"""What an acquisition makes of a truth, and the pair of both: on the truth's grid, in the intensity window of what was acquired."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsr.data.anatomy import Head
from jaxsr.data.gradients import jacobian_map
from jaxsr.data.pairs import Pair
from jaxsr.physics.acquisition import Acquisition, acquire
from jaxsr.physics.gradients import warp
from jaxsr.volume.geometry import Grid, Kind, resample, target_grid
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import Volume
from jaxsr.volume.quality import once_asked

Acquisitions = Acquisition | tuple[Acquisition, ...]
WHICH = 2**20  # the purpose of the key by which one is drawn


def drawn_acquisition(key: jax.Array, acquisition: Acquisitions) -> Acquisition:
    """One of several, all alike likely; of one, that one."""
    if isinstance(acquisition, Acquisition):
        return acquisition
    return acquisition[int(jax.random.randint(jax.random.fold_in(key, WHICH), (), 0, len(acquisition)))]


def simulate(truth: Volume, acquisition: Acquisition, key: jax.Array) -> Volume:
    """`truth` as `acquisition` would have measured it, on the acquired grid, in the same units."""
    source = truth.grid
    voxel_size = tuple(round(v, 4) for v in source.voxel_size)  # static: one program a shape, not one for each rounding of an affine
    low = np.asarray(acquire(key, jnp.asarray(truth.data), voxel_size, acquisition))  # type: ignore[arg-type]
    stretched = tuple(n * v / m for n, v, m in zip(source.shape, source.voxel_size, low.shape, strict=True))
    return Volume(low, target_grid(source, stretched).affine)


def make_pair(
    truth: Volume,
    acquisition: Acquisition,
    key: jax.Array,
    interpolation: Kind = "cubic",
    *,
    target: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> Pair:
    """`truth` and its simulated acquisition on one grid, in one window.

    Args:
      target: what is to be learned in place of the truth that was acquired, on its grid.
      mask: outside it the acquired volume was set to exactly 0, as stripping a skull does.
    """
    acquired = simulate(truth, acquisition, key)
    data = acquired.data
    if mask is not None and not mask.all():
        data = np.where(resample(mask.astype(np.float32), truth.grid, acquired.grid, "linear") > 0.5, data, 0)
    window = fit_window(data)
    low = window.forward(resample(data, acquired.grid, truth.grid, interpolation))
    high = window.forward(truth.data if target is None else target)
    return Pair(high, low, truth.grid, scanned=acquired.voxel_size, quality=once_asked(data, window))


def pair_of_head(
    head: Head,
    grid: Grid,
    acquisition: Acquisition,
    key: jax.Array,
    interpolation: Kind = "cubic",
    *,
    maps: tuple[str, ...] = (),
    carries: tuple[str, ...] = (),
) -> Pair:
    """A synthetic head, its simulated acquisition, and those of the pair's `maps` that are wanted.

    Bias field and displacement are the target scanner's. Where the target `carries` one, it shows, and what is acquired does not have it:
    then an image of the target is known in full only with the map. `reference` is as rendered, in a window of its own; labels and mask lie
    where the head is, not where gradients show it.
    """
    image = np.asarray(head.image)
    target = carrying(head, grid.voxel_size, carries) if carries else None
    mask = None if head.mask is None else np.asarray(head.mask)
    pair = make_pair(Volume(image, grid.affine), acquisition, key, interpolation, target=target, mask=mask)
    if not maps:
        return pair
    found = {name: np.asarray(getattr(head, name)) for name in maps if name != "jacobian"}
    if "jacobian" in maps:
        assert head.gradient is not None
        found["jacobian"] = jacobian_map(grid, head.gradient)
    if "reference" in found:
        found["reference"] = fit_window(found["reference"]).forward(found["reference"])
    return pair._replace(**found)  # type: ignore[arg-type]


def carrying(head: Head, voxel_size: tuple[float, float, float], carries: tuple[str, ...]) -> np.ndarray:
    """The head as its target scanner shows it, with those of its bias field and its displacement that are named: float32 `[X, Y, Z]`."""
    image = jnp.asarray(head.image)
    if "gradient" in carries:
        assert head.gradient is not None
        image = jnp.maximum(warp(image, head.gradient, voxel_size), 0)
    if "bias" in carries:
        assert head.bias is not None
        image = image * jnp.exp(head.bias)
    return np.asarray(image)
