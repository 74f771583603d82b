"""The way of a student through its stages, on axial slices of one volume: what `upscale` does not keep."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from jaxsr.methods.condition import Condition
from jaxsr.upscale.model import Model, ModelError
from jaxsr.upscale.plan import NothingToDo, map_of, plane_request
from jaxsr.volume.geometry import Grid, resample
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import Volume, VolumeError
from jaxsr.volume.slices import AXES

AXIAL = AXES["axial"]


class StagePath(NamedTuple):
    """Attributes:
    images: y, then the output of every stage that was run, `[1 + n, B, H, W]`, in the units of the volume.
    stages: their numbers, `[1 + n]`; of y that of the stage before.
    """

    images: np.ndarray
    stages: np.ndarray


def stage_path(model: Model, low: Volume, grid: Grid, slices: list[int], seed: int = 0) -> StagePath:
    """Stages of the axial `slices` of `grid`, whose axes are parallel to those of `low`, from its voxel size in plane to the grid's.

    Raises:
      ModelError: for a model that has no stages; NothingToDo: where none lies on the way.
      VolumeError: where the grid has other pixels than the model works on, or no such slice.
    """
    method = model.method
    if not hasattr(method, "path"):
        raise ModelError(f"{model.name} is of kind {model.experiment.method.kind}, which has no stages: name a student")
    pixel = model.experiment.method.pixel  # type: ignore[union-attr]
    if any(abs(mm / pixel - 1) > 0.01 for mm in grid.voxel_size[:2]):
        pixels = " × ".join(f"{mm:.3g}" for mm in grid.voxel_size[:2])
        raise VolumeError(f"{model.name} works on pixels of {pixel:g} mm, got a grid of {pixels} mm: resample to what it works on")
    if outside := [z for z in slices if not 0 <= z < grid.shape[2]]:
        raise VolumeError(f"there is no slice {outside[0]}: the grid has 0…{grid.shape[2] - 1}")
    window = fit_window(low.data)
    image = window.forward(resample(low.data, low.grid, grid, model.experiment.data.interpolation))
    request = plane_request(method, method.default_request, low.voxel_size, grid.voxel_size, AXIAL)
    if request is None:
        raise NothingToDo(f"no stage of {model.name} lies between {max(low.voxel_size[:2]):.3g} mm and {min(grid.voxel_size[:2]):.3g} mm")
    pad = map_of(method, image.shape, AXIAL, "pad")
    given = np.stack([pad.forward(image[:, :, z]) for z in slices])[..., None]
    root = functools.reduce(jax.random.fold_in, (0, AXIAL), jax.random.key(seed))  # of the first sample, as the engine has it
    keys = jax.vmap(jax.random.fold_in, (None, 0))(root, np.asarray(slices))
    run = jax.jit(lambda variables, given, keys: method.path(variables, Condition(given), keys, request)[1])
    made = np.asarray(run(model.variables, given, keys))
    ran = model.experiment.method.stages.between(request.from_mm, request.to_mm)  # type: ignore[union-attr]
    images = np.concatenate([given[None], made])[..., 0]
    back = np.stack([[window.inverse(pad.inverse(slice_)) for slice_ in stage] for stage in images])
    return StagePath(back, np.array([ran.start - 1, *ran]))
