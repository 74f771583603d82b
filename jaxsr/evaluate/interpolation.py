"""The interpolations every method is measured beside: the same input, read at the reference's voxels.

Nearest, trilinear, tricubic (interpolating cubic B-spline) and zero-filled k-space (what the scanner's own software shows), all of them
`jaxsr.volume.geometry.resample`.
"""

from dataclasses import replace

from jaxsr.volume.geometry import Grid, Kind, resample
from jaxsr.volume.io import Volume

INTERPOLATIONS: dict[str, Kind] = {"nearest": "nearest", "trilinear": "linear", "tricubic": "cubic", "zero-filled": "kspace"}


def interpolate(low: Volume, grid: Grid, name: str) -> Volume:
    """`low` on `grid` by the interpolation called `name`.

    Raises:
      ValueError: for a name that is not in INTERPOLATIONS, or where the grids' axes are not parallel.
    """
    if name not in INTERPOLATIONS:
        raise ValueError(f"unknown interpolation {name!r}, expected one of {', '.join(INTERPOLATIONS)}")
    return replace(low, data=resample(low.data, low.grid, grid, INTERPOLATIONS[name]), affine=grid.affine, path=None)
