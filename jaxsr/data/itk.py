"""SimpleITK, which is an optional extra, used so that it repeats itself bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from jaxsr.volume.errors import VolumeError
from jaxsr.volume.geometry import Grid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's scanner axes


@contextmanager
def simpleitk() -> Iterator[ModuleType]:
    """SimpleITK on one thread: sums over several come out different every time.

    Raises:
      VolumeError: where it is not installed.
    """
    try:
        import SimpleITK  # an extra, slow to load: only what prepares data needs it
    except ImportError:
        raise VolumeError("registration and bias fields need SimpleITK, which is not installed: pip install 'jaxsr[itk]'") from None
    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield SimpleITK
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def image_of(sitk: ModuleType, data: np.ndarray, grid: Grid) -> Any:
    """A SimpleITK image of `data [X, Y, Z]`, at its place in the scanner; the grid is not sheared."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    lps = LPS @ grid.affine
    image.SetSpacing(grid.voxel_size)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / grid.voxel_size).ravel().tolist())
    return image
