"""Maps that guide a model, read from files onto the grid of the output."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxsr.data.bias import foreground
from jaxsr.data.gradients import field_on_grid, gradient_map, is_volume, jacobian_map
from jaxsr.data.pairs import made_of
from jaxsr.data.records import file_sha256
from jaxsr.experiment import Experiment
from jaxsr.files import shown
from jaxsr.methods.condition import MAP_CHANNELS
from jaxsr.upscale.guides import Guides, maps_to_upscale
from jaxsr.volume.decode import open_image
from jaxsr.volume.geometry import Grid, resample
from jaxsr.volume.io import Volume, VolumeError, read_volume

STRONGEST = 3.0  # |log b| over the head: a factor of 20, where coils at 7 T leave 3


def read_guides(experiment: Experiment, guides: Guides, grid: Grid, scan: Volume) -> dict[str, np.ndarray]:
    """The maps on `grid`, as the model of `experiment` is guided by them and `Engine.upscale` takes them.

    Args:
      scan: what is upscaled, its axes parallel to the grid's: over its foreground the bias field has mean 0, as in training.

    Raises:
      VolumeError: for what cannot be read, does not lie on the head, or is no such map.
    """
    maps = {}
    if guides.bias:
        maps["bias"] = bias_map(grid, guides.bias, scan)
    if guides.gradient:
        displacement = gradient_map(grid, guides.gradient, isocentre=guides.isocentre, convention=guides.convention)
        maps |= {"jacobian": jacobian_map(grid, displacement)} if _by_jacobian(experiment) else {"gradient": displacement}
    for name in maps_to_upscale(experiment):
        if made_of(name) in guides.flat:
            maps[name] = np.zeros(grid.shape if MAP_CHANNELS[name] == 1 else (*grid.shape, MAP_CHANNELS[name]), np.float32)
    return maps


def guidance_facts(experiment: Experiment, guides: Guides) -> dict[str, Any]:
    """For a sidecar: whose maps guided, what was in them, and how a gradient's was read."""
    read = {"Convention": guides.convention} if guides.gradient and is_volume(guides.gradient) else {"Isocentre": list(guides.isocentre)}
    told = {"gradient": read | ({"As": "log_jacobian"} if _by_jacobian(experiment) else {})}
    files = {name: {"File": path.name, "SHA256": file_sha256(path), **told.get(name, {})} for name, path in guides.named.items()}
    return files | {name: {"Flat": True} for name in guides.flat}


def bias_map(grid: Grid, path: Path, scan: Volume) -> np.ndarray:
    """The logarithm of the bias field in the file `path`, on `grid`, float32 `[X, Y, Z]`, its mean 0 over the foreground of `scan`.

    Raises:
      VolumeError: where the field is not positive throughout, covers too little of the grid, or is none that a coil has.
    """
    try:
        shape = open_image(path).shape
    except VolumeError as error:
        raise VolumeError(f"{shown(path)}: {error}") from None
    if int(np.prod(shape[3:])) != 1:
        sides = " × ".join(map(str, shape))
        raise VolumeError(f"{shown(path)}: a bias field is one volume, and this is an array of {sides}: write the one that is meant")
    volume = read_volume(path, constant="allow", nan="zero")  # which is refused below
    least = float(volume.data.min())
    if not least > 0:
        raise VolumeError(
            f"{shown(path)}: a bias field multiplies intensities, so all of it is finite and above 0, and here the least is {least:.3g}: "
            "give the field as N4 writes it, not its logarithm and not masked"
        )
    try:
        log = field_on_grid(np.log(volume.data, dtype=np.float32)[..., None], volume.grid, grid)[..., 0]
    except VolumeError as error:
        raise VolumeError(f"{shown(path)}: {error}") from None
    inside = resample(foreground(scan).astype(np.float32), scan.grid, grid, "nearest") > 0.5
    log = np.asarray(log - log[inside].mean(dtype=np.float64), np.float32)
    if (strongest := float(np.abs(log[inside]).max())) > STRONGEST:
        raise VolumeError(
            f"{shown(path)}: over the head it goes up to {np.exp(strongest):.3g} times its mean, or down to as little, and no coil's field "
            f"goes beyond {np.exp(STRONGEST):.0f}: is it a bias field, or an image?"
        )
    return log


def _by_jacobian(experiment: Experiment) -> bool:
    return "jacobian" in maps_to_upscale(experiment)
