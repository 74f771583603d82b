"""Maps that guide a model, from files onto the grid of the output: the target's bias field and its gradient nonlinearity."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxsr.data.gradients import Convention, field_on_grid, gradient_map
from jaxsr.experiment import Experiment
from jaxsr.files import shown
from jaxsr.volume.geometry import Grid
from jaxsr.volume.io import VolumeError, read_volume


class Guides(NamedTuple):
    """Files of one input; None where there is none.

    Attributes:
      bias: a volume of the field that multiplies the intensities, about 1, as N4 writes it.
      gradient: a displacement volume in mm, or a coil's coefficients; `convention` as in `jaxsr.data.gradients`.
      isocentre: of the magnet in scanner mm, for coefficients.
    """

    bias: Path | None = None
    gradient: Path | None = None
    convention: Convention = "ras"
    isocentre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def named(self) -> dict[str, Path]:
        return {name: path for name, path in (("bias", self.bias), ("gradient", self.gradient)) if path}


def check_guides(experiment: Experiment, guides: Guides) -> None:
    """Raises VolumeError where a map is given that the model is not guided by."""
    takes = getattr(experiment.method, "maps", ())
    for name, path in guides.named.items():
        if name not in takes:
            what = "no maps" if not takes else " and ".join(takes) + " only"
            raise VolumeError(f"{shown(path)}: this model is guided by {what}: leave {OPTIONS[name]} out, or use a teacher trained with it")


OPTIONS = {"bias": "--bias-field", "gradient": "--gradient-map"}


def read_guides(guides: Guides, grid: Grid) -> dict[str, np.ndarray]:
    """The maps on `grid`, as `Engine.upscale` takes them.

    Raises:
      VolumeError: for what cannot be read, does not lie on the head, or is no such map.
    """
    maps = {}
    if guides.bias:
        maps["bias"] = bias_map(grid, guides.bias)
    if guides.gradient:
        maps["gradient"] = gradient_map(grid, guides.gradient, isocentre=guides.isocentre, convention=guides.convention)
    return maps


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
