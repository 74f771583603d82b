"""Maps that guide a model, read from files onto the grid of the output."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxsr.data.gradients import field_on_grid, gradient_map, jacobian_map
from jaxsr.data.records import file_sha256
from jaxsr.experiment import Experiment
from jaxsr.files import shown
from jaxsr.upscale.guides import Guides
from jaxsr.volume.geometry import Grid
from jaxsr.volume.io import VolumeError, read_volume


def read_guides(experiment: Experiment, guides: Guides, grid: Grid) -> dict[str, np.ndarray]:
    """The maps on `grid`, as the model of `experiment` is guided by them and `Engine.upscale` takes them.

    Raises:
      VolumeError: for what cannot be read, does not lie on the head, or is no such map.
    """
    maps = {}
    if guides.bias:
        maps["bias"] = bias_map(grid, guides.bias)
    if guides.gradient:
        displacement = gradient_map(grid, guides.gradient, isocentre=guides.isocentre, convention=guides.convention)
        maps |= {"jacobian": jacobian_map(grid, displacement)} if _by_jacobian(experiment) else {"gradient": displacement}
    return maps


def guidance_facts(experiment: Experiment, guides: Guides) -> dict[str, Any]:
    """For a sidecar: whose maps guided, what was in them, and, where a displacement guided by its Jacobian, that it did."""
    told = {"gradient": {"As": "log_jacobian"}} if _by_jacobian(experiment) else {}
    return {name: {"File": path.name, "SHA256": file_sha256(path), **told.get(name, {})} for name, path in guides.named.items()}


def bias_map(grid: Grid, path: Path) -> np.ndarray:
    """The logarithm of the bias field in the file `path`, on `grid`, float32 `[X, Y, Z]`, its mean 0.

    Raises:
      VolumeError: where the field is not positive throughout, or covers too little of the grid.
    """
    volume = read_volume(path, constant="allow")
    least = float(volume.data.min())
    if not least > 0:
        raise VolumeError(
            f"{shown(path)}: a bias field multiplies intensities, so all of it is above 0, and here the least is {least:.3g}: "
            "give the field as N4 writes it, not its logarithm and not masked"
        )
    try:
        log = field_on_grid(np.log(volume.data, dtype=np.float32)[..., None], volume.grid, grid)[..., 0]
    except VolumeError as error:
        raise VolumeError(f"{shown(path)}: {error}") from None
    return np.asarray(log - log.mean(dtype=np.float64), np.float32)


def _by_jacobian(experiment: Experiment) -> bool:
    return "jacobian" in getattr(experiment.method, "maps", ())
