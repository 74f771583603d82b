"""Magnitude reconstructions in fastMRI's HDF5 files (brain and knee).

    reconstruction_rss, reconstruction_esc   [slices, rows, columns], float32
    ismrmrd_header                           XML: encoding/reconSpace has matrixSize and fieldOfView_mm
    attributes                               acquisition ('AXT2', 'CORPD_FBK'), patient_id, max, norm

The voxel size in a slice is the field of view of the reconstruction by its matrix; images are cropped after that, which changes no voxel.
Slices are as far apart as they are thick, which fieldOfView_mm/z gives: the files know no gap. Nor do they know which way is which.
Slices of a brain are taken to be axial, from feet to head, with rows from front to back and columns from the patient's right to left, as
pictures are shown; those of a knee (COR…) coronal, from back to front, with rows from head to feet. All of these signs are assumed.
"""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.io import SMALLEST_SIDE, Volume

SUFFIXES = (".h5", ".hdf5")
NAMES = ("reconstruction_rss", "reconstruction_esc")  # the first that is there is read
ASSUMED = "fastMRI files hold no orientation: which way slices, rows and columns run is assumed"

# World axes (right, anterior, superior) of slices, rows, columns, and their signs.
_AXIAL = ((2, 1), (1, -1), (0, -1))
_CORONAL = ((1, 1), (2, -1), (0, -1))


class Facts(NamedTuple):
    """What a file says of itself without its voxels being read."""

    acquisition: str
    patient: str
    reconstruction: str  # one of NAMES, or '' where there is only k-space
    held: tuple[str, ...]  # names of what is in the file


def facts(path: Path) -> Facts:
    """Raises VolumeError where the file is no HDF5, or h5py is not installed."""
    h5py = require_h5py()
    try:
        with h5py.File(path, "r") as file:
            name = next((name for name in NAMES if isinstance(file.get(name), h5py.Dataset)), "")
            return Facts(_text(file.attrs.get("acquisition", "")), _text(file.attrs.get("patient_id", "")), name, tuple(file))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def read_reconstruction(path: Path) -> Volume:
    """The reconstruction as a volume in RAS+, centred at the scanner's origin.

    Raises:
      VolumeError: as `facts`; for no reconstruction, one that is not three-dimensional, finite and of some contrast, or no field of view.
    """
    h5py = require_h5py()
    try:
        with h5py.File(path, "r") as file:
            name = next((name for name in NAMES if isinstance(file.get(name), h5py.Dataset)), None)
            if name is None:
                raise VolumeError(f"{shown(path)}: {no_reconstruction(list(file))}")
            if len(file[name].shape) != 3 or file[name].dtype.kind not in "iuf":
                sides = " × ".join(map(str, file[name].shape))
                raise VolumeError(f"{shown(path)}: {name} is {sides} of {file[name].dtype}, not [slices, rows, columns] of magnitudes")
            data = np.asarray(file[name], np.float32)
            acquisition = _text(file.attrs.get("acquisition", ""))
            header = file.get("ismrmrd_header")
            if header is None:
                raise VolumeError(f"{shown(path)}: there is no ismrmrd_header, so no voxel size: it is not one of fastMRI's files")
            spacing = _spacing(_text(header[()]))
    except VolumeError as error:
        raise error if str(error).startswith(shown(path)) else VolumeError(f"{shown(path)}: {error}") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    if min(data.shape) < SMALLEST_SIDE or not np.isfinite(data).all() or data.min() == data.max():
        sides = " × ".join(map(str, data.shape))
        raise VolumeError(f"{shown(path)}: {name} of {sides} is too thin, not finite or has no contrast: download the file again")
    axes = _CORONAL if acquisition.upper().startswith("COR") else _AXIAL
    order = np.argsort([world for world, _ in axes])  # which file axis runs along right, anterior, superior
    flips = tuple(slice(None, None, axes[i][1]) for i in order)
    data = np.ascontiguousarray(data.transpose(order)[flips])
    affine = np.diag([*(spacing[i] for i in order), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(data.shape) - 1) / 2)
    return Volume(data, affine, path=path, notes=(ASSUMED,))


def no_reconstruction(names: list[str]) -> str:
    held = f"only {', '.join(sorted(names)[:5])}" if names else "nothing"
    return f"there is no {' or '.join(NAMES)}, {held}: reconstruct magnitudes first (the test sets have none)"


def _spacing(header: str) -> tuple[float, float, float]:
    """Millimetres between slices, rows and columns."""
    try:
        root = ElementTree.fromstring(header)
    except ElementTree.ParseError as error:
        raise VolumeError(f"the ismrmrd_header is no XML ({error}): download the file again") from error
    for element in root.iter():
        element.tag = re.sub(r"^\{.*\}", "", str(element.tag))
    values: dict[str, float] = {}
    for of, axes in (("matrixSize", "xy"), ("fieldOfView_mm", "xyz")):
        for axis in axes:
            text = root.findtext(f"encoding/reconSpace/{of}/{axis}")
            try:
                values[of[0] + axis] = float(text or "")
            except ValueError:
                values[of[0] + axis] = 0.0
    if not all(0 < value < 1e5 for value in values.values()):
        raise VolumeError(
            "the ismrmrd_header has no reconSpace with matrixSize and fieldOfView_mm, so no voxel size: download the file again"
        )
    # ISMRMRD's x is the readout. fastMRI's arrays are [slices, readout, phase], their reconSpace square in nearly all files.
    return (values["fz"], values["fx"] / values["mx"], values["fy"] / values["my"])


def require_h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise VolumeError("fastMRI's files are HDF5, and h5py is not installed: pip install 'jaxsr[fastmri]'") from error
    module: ModuleType = h5py
    return module


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _damaged(path: Path, error: Exception) -> VolumeError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return VolumeError(f"{shown(path)}: cannot be read as HDF5 ({shown(first)}): download it again")
