"""The gradient-nonlinearity map g of a volume, from a displacement volume or from the coefficients of the scanner's coil; and its Jacobian.

g holds u of `jaxsr.physics.gradients`: the point at r was imaged at r + u(r), so u tells where in the distorted scan a corrected voxel is
read. That is the sense in which programs that resample write their fields; what differs is along which axes the components are:

    ras           the scanner's axes, right, anterior, superior
    lps           left, posterior, superior: ITK, ANTs, SimpleITK
    fsl           FSL's relative warps: the file's own voxel axes, x reversed where they are right-handed
    fsl-absolute  FSL's absolute warps, as gradunwarp writes `fullWarp_abs`: not u but r + u, in FSL's millimetres
"""

from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import ndimage

from jaxsr.files import shown
from jaxsr.physics.gradients import Coil, displacement, log_jacobian, parse_coefficients, turn_axes
from jaxsr.volume.decode import load_data, open_image
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.geometry import Grid
from jaxsr.volume.header import place

Convention = Literal["ras", "lps", "fsl", "fsl-absolute"]

FARTHEST = 50.0  # mm; no coil displaces farther inside a head
COVERED = 0.9  # of the volume, by a displacement volume; beyond it, its edge goes on
_VOLUMES = (".nii", ".nii.gz", ".mgh", ".mgz", ".hdr", ".img")
_LARGEST = 1 << 20  # bytes of a text file


def gradient_map(
    grid: Grid, source: str | Path, *, isocentre: tuple[float, float, float] = (0.0, 0.0, 0.0), convention: Convention = "ras"
) -> np.ndarray:
    """u on a grid, float32 `[X, Y, Z, 3]`: mm along the grid's axes.

    Args:
      source: a displacement volume `[X, Y, Z, 3]` or `[X, Y, Z, 1, 3]` in mm, of any orientation and voxel size, or, by any other suffix
        than a volume's, a text file of coefficients (`parse_coefficients`).
      isocentre: of the magnet, in scanner mm; for coefficients only.
      convention: of the components of a displacement volume.

    Raises:
      VolumeError: names the file, what was found, what was expected, and the way out.
    """
    source = Path(source)
    try:
        if is_volume(source):
            world = _from_volume(grid, source, convention)
        else:
            world = _from_coil(grid, parse_coefficients(_text(source)), np.array(isocentre, np.float64))
        farthest = float(np.linalg.norm(world, axis=-1).max())
        if not farthest <= FARTHEST:
            raise VolumeError(
                f"displaces by {farthest:.3g} mm, expected {FARTHEST:g} mm at most: check its unit, the isocentre, and whether it is an "
                "absolute warp (convention fsl-absolute)"
            )
    except ValueError as error:  # a VolumeError is one
        raise VolumeError(f"{shown(source)}: {error}") from None
    directions = grid.affine[:3, :3] / grid.voxel_size
    return (world @ np.linalg.inv(directions).T).astype(np.float32)


def jacobian_map(grid: Grid, displacement_mm: ArrayLike) -> np.ndarray:
    """log det(1 + ∇u) on a grid, float32 `[X, Y, Z]`, of u `[X, Y, Z, 3]` in mm along its axes; the same along any other axes.

    Of whole volumes only: a slice does not show how u changes through it. Where u was read linearly between coarser voxels, its derivatives
    are constant between them, off by up to half their spacing times its second derivative; beyond a file's edge u does not change.
    """
    return np.asarray(log_jacobian(jnp.asarray(displacement_mm), grid.voxel_size))


def is_volume(source: Path) -> bool:
    """Whether, by its name, it is a displacement volume; else coefficients."""
    return source.name.lower().endswith(_VOLUMES)


def _from_coil(grid: Grid, coil: Coil, isocentre: np.ndarray) -> np.ndarray:
    """u along the scanner's axes, RAS, one plane at a time."""
    y, z = np.meshgrid(*(np.arange(n) for n in grid.shape[1:]), indexing="ij")
    world = np.empty((*grid.shape, 3), np.float32)
    for x in range(grid.shape[0]):
        index = np.stack([np.full_like(y, x), y, z], -1)
        points = (index @ grid.affine[:3, :3].T + grid.affine[:3, 3] - isocentre).astype(np.float32)
        world[x] = turn_axes(displacement(coil, turn_axes(points)))
    return world


def _from_volume(grid: Grid, path: Path, convention: Convention) -> np.ndarray:
    """u along the scanner's axes, RAS, read linearly at the grid's voxels: splines would wave at the edge, where a field does not end."""
    image = open_image(path)
    if image.shape[3:] not in ((3,), (1, 3)):
        raise VolumeError(
            f"has the shape {' × '.join(map(str, image.shape))}, expected X × Y × Z × 3 or X × Y × Z × 1 × 3: give a displacement volume"
        )
    field = Grid((image.shape[0], image.shape[1], image.shape[2]), place(image).affine)
    vectors = np.stack([load_data(image, component)[0] for component in range(3)], -1)
    if not np.isfinite(vectors).all():
        raise VolumeError(f"{int((~np.isfinite(vectors)).sum())} components are NaN or infinite: set them to 0 first")
    vectors = _to_ras(vectors, field, convention)

    return field_on_grid(vectors, field, grid)


def field_on_grid(values: np.ndarray, field: Grid, grid: Grid) -> np.ndarray:
    """A smooth field `[X, Y, Z, C]` on the grid `field`, read linearly at the voxels of `grid`; beyond its edge, that goes on.

    Raises:
      VolumeError: where it covers less than COVERED of `grid`.
    """
    index = np.linalg.solve(field.affine, grid.affine)
    inside = np.ones(grid.shape, bool)
    axes = [np.arange(n) for n in grid.shape]
    for row, n in zip(index, field.shape, strict=False):
        position = row[3] + sum(np.reshape(row[a] * axes[a], [-1 if b == a else 1 for b in range(3)]) for a in range(3))
        inside &= (position >= -0.5) & (position <= n - 0.5)
    if inside.mean() < COVERED:
        raise VolumeError(
            f"covers {inside.mean():.0%} of the volume, expected at least {COVERED:.0%}: is it the field of this scan, with its affine?"
        )
    parts = [
        ndimage.affine_transform(values[..., c], index, output_shape=grid.shape, order=1, mode="nearest") for c in range(values.shape[-1])
    ]
    return np.stack(parts, -1)


def _to_ras(vectors: np.ndarray, field: Grid, convention: Convention) -> np.ndarray:
    match convention:
        case "ras":
            return vectors
        case "lps":
            return vectors * np.array([-1, -1, 1], np.float32)
        case "fsl" | "fsl-absolute":
            reversed_x = np.linalg.det(field.affine[:3, :3]) > 0
            vectors = vectors.copy()
            if convention == "fsl-absolute":
                for axis, (n, size) in enumerate(zip(field.shape, field.voxel_size, strict=True)):
                    at = np.arange(n) * size
                    at = at[::-1] if axis == 0 and reversed_x else at
                    vectors[..., axis] -= at.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
            if reversed_x:
                vectors[..., 0] *= -1
            return vectors @ (field.affine[:3, :3] / field.voxel_size).T.astype(np.float32)
        case _:
            raise VolumeError(f"unknown convention {convention!r}: expected ras, lps, fsl or fsl-absolute")


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise VolumeError(f"cannot be opened ({error.strerror or error}): check the path and its permissions") from None
    if len(content) > _LARGEST or b"\0" in content:
        raise VolumeError(
            f"is neither a volume by its suffix ({', '.join(_VOLUMES)}) nor a text file of coefficients: name it by what it is"
        )
    return content.decode("latin-1")  # comments may hold anything
