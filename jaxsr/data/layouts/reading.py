"""Reading whatever a layout finds."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from jaxsr.data.layouts import hdf5
from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.io import Volume, read_volume


def read_scan(path: Path, *, nan: Literal["refuse", "zero"] = "refuse", constant: Literal["refuse", "allow"] = "refuse") -> Volume:
    """One volume, float32 in RAS+: NIfTI, MGH, or the reconstruction in a fastMRI file (.h5, .hdf5); the rest as in `read_volume`.

    Raises:
      VolumeError: as `read_volume`; for HDF5 without h5py, or without a reconstruction.
    """
    return hdf5.read_reconstruction(path) if path.suffix.lower() in hdf5.SUFFIXES else read_volume(path, nan=nan, constant=constant)


def read_bias(path: Path) -> Volume:
    """The logarithm of the bias field in a file that holds the field itself, which multiplies the image; 0 where the file has exactly 0.

    Raises:
      VolumeError: as `read_scan`; where a value is negative, as in a file that holds the logarithm already.
    """
    field = read_scan(path, constant="allow")
    outside = field.data == 0
    if (field.data < 0).any():
        count = int((field.data < 0).sum())
        raise VolumeError(
            f"{shown(path)}: {count} voxels are negative: a bias field multiplies; give its exponential if this is its logarithm"
        )
    log = np.log(np.where(outside, np.float32(1), field.data))
    note = (f"the bias field is 0 in {int(outside.sum())} voxels: they are outside of it and count as 1",) if outside.any() else ()
    return replace(field, data=log, notes=(*field.notes, *note))
