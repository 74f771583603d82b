"""What a prepared set is asked to be: everything that its bytes depend on, beside the files themselves."""

from typing import Literal

import pydantic

from jaxsr.config import Strict
from jaxsr.data.layouts.base import Wanted
from jaxsr.physics.protocol import Acquisition, named_acquisition
from jaxsr.volume.slices import AXES


class PrepareSettings(Strict):
    """Attributes:
    layout: a name in `jaxsr.data.layouts.LAYOUTS`.
    wanted: which files are the truth, the low-resolution side, the second contrast.
    voxel_size: mm of the target: of all three axes, or where slices are cut across one axis only, of the slices; through them the truth's
      own spacing stays.
    axes: that slices are cut across.
    acquisition: what the low-resolution side is simulated as, where there is no real one.
    visits: simulated acquisitions of each scan that has no real one.
    interpolation: that brings a low-resolution volume to the target grid, in training and in `upscale`.
    registration: what brings the other volumes of a person to the truth: rigid, affine, or off where they share its space already.
    bias: correct (N4 divides the bias field out of each volume; the truth's field is kept as a map), map (the map is kept, the volumes stay
      as they are), or off.
    gradient: SHA-256 of the file with the coil's coefficients, or with a displacement volume for all scans, where there is one.
    convention: of the components of displacement volumes; see `jaxsr.data.gradients`.
    isocentre: of the magnet, in scanner mm, for coefficients.
    extra: maps of the data set to keep: labels, mask, gradient; and jacobian, of its displacement or of that of `gradient`.
    least_tissue: share of a slice that must be tissue for the slice to be kept.
    dtype: of intensities, fields and displacements.
    nan: zero, to set NaN and infinite voxels to 0, or refuse.
    seed: of simulated acquisitions.
    split: stable (who is in which split never changes when people are added) or exact (the shares are met); see `jaxsr.data.splits`.
    shares: of train, validation and test.
    split_seed: of the split: another simulation has the same people in its test split.
    """

    layout: str
    wanted: Wanted = Wanted()
    voxel_size: float = pydantic.Field(1.0, ge=0.1, le=10)
    axes: tuple[Literal["sagittal", "coronal", "axial"], ...] = pydantic.Field(("sagittal", "coronal", "axial"), min_length=1)
    acquisition: Acquisition = named_acquisition("1.5T")
    visits: int = pydantic.Field(1, ge=1, le=1000)
    interpolation: Literal["linear", "cubic", "kspace"] = "cubic"
    registration: Literal["rigid", "affine", "off"] = "rigid"
    bias: Literal["correct", "map", "off"] = "correct"
    gradient: str | None = None
    convention: Literal["ras", "lps", "fsl", "fsl-absolute"] = "ras"
    isocentre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    extra: tuple[Literal["labels", "mask", "gradient", "jacobian"], ...] = ()
    least_tissue: float = pydantic.Field(0.05, ge=0, le=1)
    dtype: Literal["float16", "float32"] = "float16"
    nan: Literal["refuse", "zero"] = "refuse"
    seed: int = pydantic.Field(0, ge=0)
    split: Literal["stable", "exact"] = "stable"
    shares: tuple[float, float, float] = (8.0, 1.0, 1.0)
    split_seed: int = pydantic.Field(0, ge=0)

    @property
    def in_plane(self) -> tuple[int, ...]:
        """Axes of the volume that lie in some slice."""
        return tuple(axis for axis in range(3) if any(AXES[across] != axis for across in self.axes))

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the maps that every record has."""
        known = {
            "reference": self.wanted.reference is not None,
            "bias": self.bias != "off",
            "gradient": self.gradient is not None or "gradient" in self.extra,
            "jacobian": "jacobian" in self.extra,
            "labels": "labels" in self.extra,
            "mask": "mask" in self.extra,
        }
        return ("high", "low", *(name for name, there in known.items() if there))
