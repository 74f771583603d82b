"""The bias field of a scan, by N4 [Tustison, IEEE Trans. Med. Imaging 29:1310, 2010], by SimpleITK.

    log v(r) = log u(r) + b(r):      b, a cubic B-spline, is what sharpens the histogram of u when it is taken away

b is fitted to voxels about 6 mm apart, with control points from 200 down to 50 mm apart, and evaluated at the volume's own. Everything
runs on one thread: the result is repeatable bit for bit.
"""

import numpy as np

from jaxsr.data.itk import simpleitk
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.foreground import foreground as find_foreground
from jaxsr.volume.io import Volume

FITTED = 6.0  # mm
CONTROL = 200.0  # mm between control points at first; halved at every further level
ITERATIONS = (50, 50, 50)  # at each level; finer control points, or more iterations, take up anatomy
CONVERGED = 1e-5  # change of the field, relative
SMALLEST = 500  # fitted voxels; three levels of splines fit anything in fewer


def n4(volume: Volume, *, mask: np.ndarray | None = None, shrink: tuple[int, int, int] | None = None) -> np.ndarray:
    """The log bias field b, float32 `[X, Y, Z]`, with mean 0 over the foreground; the volume times exp(−b) is free of it.

    Args:
      mask: `[X, Y, Z]`, where to look; by default `foreground`. Voxels that are not positive are left out in any case.
      shrink: the fit looks at every so many voxels of each axis; by default at voxels about 6 mm apart.

    Raises:
      VolumeError: without SimpleITK; for a volume with NaN, without contrast, or without enough positive foreground.
    """
    name = str(volume.path or "the volume")
    data = np.asarray(volume.data, np.float32)
    if not np.isfinite(data).all():
        raise VolumeError(f"{name}: {int((~np.isfinite(data)).sum())} voxels are NaN or infinite: set them to 0 first")
    if mask is not None and mask.shape != data.shape:
        raise VolumeError(f"the mask has shape {mask.shape}, the volume {data.shape}: give a mask on the volume's own grid")
    looked_at = find_foreground(data) if mask is None else mask.astype(bool)
    where = looked_at & (data > 0)
    if where.sum() < looked_at.sum() / 2:
        raise VolumeError(
            f"{name}: {1 - where.sum() / looked_at.sum():.0%} of the foreground is not positive, as in a normalised volume: a bias field "
            "multiplies the scanner's intensities; give those"
        )
    factors = shrink or tuple(max(1, min(round(FITTED / v), n // 4)) for v, n in zip(volume.voxel_size, data.shape, strict=True))
    fitted = tuple(slice(factor // 2, None, factor) for factor in factors)
    if where[fitted].sum() < SMALLEST or np.ptp(data[fitted][where[fitted]]) == 0:
        raise VolumeError(
            f"{name}: no bias field can be seen in {int(where[fitted].sum())} voxels of foreground {FITTED:g} mm apart with "
            f"{'no' if where[fitted].any() else 'any'} contrast, expected at least {SMALLEST}: give a mask that covers the head"
        )

    with simpleitk() as sitk:
        images = full, coarse, inside = [
            sitk.GetImageFromArray(np.ascontiguousarray(a.T)) for a in (data, data[fitted], where[fitted].astype(np.uint8))
        ]
        for image, step in zip(images, ((1, 1, 1), factors, factors), strict=True):
            image.SetSpacing([v * f for v, f in zip(volume.voxel_size, step, strict=True)])
            image.SetOrigin([v * (f // 2) for v, f in zip(volume.voxel_size, step, strict=True)])
        method = sitk.N4BiasFieldCorrectionImageFilter()
        method.SetMaximumNumberOfIterations(ITERATIONS)
        method.SetConvergenceThreshold(CONVERGED)
        method.SetNumberOfControlPoints([int(np.ceil(n * v / CONTROL)) + 3 for n, v in zip(data.shape, volume.voxel_size, strict=True)])
        method.Execute(coarse, inside)
        field = sitk.GetArrayFromImage(method.GetLogBiasFieldAsImage(full)).T.astype(np.float32)
    return np.ascontiguousarray(field - field[where].mean(dtype=np.float64).astype(np.float32))


def foreground(volume: Volume) -> np.ndarray:
    """The head, as far as it is positive: where a bias field shows. Boolean `[X, Y, Z]`."""
    return find_foreground(volume.data) & (volume.data > 0)
