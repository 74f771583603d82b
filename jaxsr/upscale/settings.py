"""What a volume is to be upscaled to and how, and what of it the model decides."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxsr.data.pairs import SQUARE
from jaxsr.experiment import Experiment
from jaxsr.methods.base import Request
from jaxsr.physics.protocol import Acquisition
from jaxsr.upscale.consistency import Consistency
from jaxsr.upscale.inputs import Sizes, resolution_notes, resolving, scale_notes
from jaxsr.upscale.model import ModelError, Recipe
from jaxsr.upscale.plan import default_size, is_told
from jaxsr.upscale.sidecar import map_names
from jaxsr.volume.io import Volume
from jaxsr.volume.resolution import resolved_mm
from jaxsr.volume.slices import AXES


class Settings(NamedTuple):
    """The options of `jaxsr upscale` that concern the result; see `jaxsr upscale --help`."""

    to_mm: float | None  # None: what `default_size` says of each volume
    request: Request
    axes: tuple[str, ...] = tuple(AXES)
    seed: int = 0
    volume: int | None = None
    nan: Literal["refuse", "zero"] = "refuse"
    picture: bool = True
    samples: int = 1
    keep_samples: bool = False
    consistency: Consistency | None = None
    from_mm: Sizes | Literal["found"] | None = None  # 'found': of each volume by `resolved_mm`
    explain: bool = False
    reference: Path | None = None
    resolves: Sizes | None = None  # what `settled` says of a volume

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of what is written beside an output, as `map_path` takes them."""
        return map_names(
            self.samples,
            keep=self.keep_samples,
            consistency=self.consistency is not None,
            explain=self.explain,
            errors=self.reference is not None,
        )

    @property
    def memory(self) -> dict[str, Any]:
        """What of it takes memory, as `memory_needed` takes it."""
        return {
            "picture": self.picture,
            "samples": self.samples,
            "consistency": self.consistency is not None,
            "explain": self.explain,
        }


def settled(settings: Settings, recipe: Recipe, volume: Volume) -> Settings:
    """With what `volume` is taken to resolve, and the voxel size that it is brought to."""
    said = resolved_mm(volume.data, volume.voxel_size) if settings.from_mm == "found" else settings.from_mm
    resolves = resolving(volume.voxel_size, said)
    settings = settings._replace(resolves=resolves)
    if settings.to_mm is not None:
        return settings
    mm = default_size(recipe.method, recipe.experiment.data.voxel_size, resolves)
    return settings._replace(to_mm=mm, request=settings.request._replace(to_mm=mm))


def notes_of(volume: Volume, settings: Settings, recipe: Recipe) -> tuple[str, ...]:
    """What of a volume's sizes, by settings that are `settled` for it, there is to be said."""
    assert settings.resolves
    odd = scale_notes(volume, settings.to_mm, training_scans(recipe.experiment, settings.resolves), settings.resolves)
    found = settings.resolves if settings.from_mm == "found" else resolved_mm(volume.data, volume.voxel_size)
    return (*odd, *resolution_notes(volume.voxel_size, found, settings.from_mm, told=is_told(recipe.method)))


def training_scans(experiment: Experiment, resolves: Sizes) -> Sizes:
    """Voxel size in mm of the scans that a model learnt from: that of the acquisition, or of the heads where they were coarser; of a model
    that learnt from a range of sizes, those nearest to what a scan `resolves`: in the plane of a stack of slices that may be as fine as a
    truth is."""
    if between := getattr(experiment.method, "between_mm", None) or experiment.data.range_acquired:
        finest, coarsest = min([between[0], *(getattr(experiment.method, "pixels", None) or ())]), max(resolves)
        x, y, z = (float(np.clip(mm, finest if coarsest > SQUARE * mm else between[0], between[1])) for mm in resolves)
        return x, y, z
    if experiment.data.acquired:
        return experiment.data.acquired
    x, y, z = (max(mm, experiment.data.voxel_size) for mm in experiment.data.acquisition.typical.spacing)
    return x, y, z


def declared_acquisition(experiment: Experiment, named: Acquisition | None = None, sigma: float | None = None) -> Consistency:
    """What a consistency map compares by: the acquisition that was `named`, else that of the model's training.

    Raises:
      ModelError: where the model learnt from scans of which nobody says how they were acquired.
    """
    if named is None and experiment.data.acquired:
        raise ModelError("the model was trained on a prepared set, which does not say how scans are acquired: give --acquisition NAME")
    if named is None and experiment.data.mixture:
        raise ModelError("the model was trained on scans that were acquired in several ways, and not told which: give --acquisition NAME")
    return Consistency(named or experiment.data.acquisition, sigma)
