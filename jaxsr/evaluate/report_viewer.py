"""What the three-plane viewer of a report shows: every volume as 8 bits in one picture of all its sagittal slices, a brainsprite.

The viewer is the one of nilearn, brainsprite, whose script comes with nilearn and needs no network. It is called directly, not through
`nilearn.plotting.view_img`: that makes a page of its own for one volume, and the point here is to exchange volumes in the same place.
Slices are turned as a radiologist reads them, the patient's right on the left of axial and coronal planes; brainsprite draws sagittal ones
with the face to the right. Errors are not stored: the page subtracts, in steps of 1/255 of the grey window.
"""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps

from jaxsr.evaluate.montage import TARGET, bounding_box, head_centre
from jaxsr.evaluate.report_figures import data_uri, webp
from jaxsr.volume.geometry import Grid, resample, target_grid
from jaxsr.volume.intensity import Window

SCRIPT = "brainsprite.min.js"
ALIKE = 0.01  # voxel sides that differ by less, relatively, are drawn as cubes


def viewer_script() -> str | None:
    """brainsprite's own text, wherever this version of nilearn keeps it; None where it has none."""
    found = find_spec("nilearn")
    paths = sorted(Path(found.origin).parent.rglob(SCRIPT)) if found and found.origin else []
    return paths[0].read_text(encoding="utf-8") if paths else None


def viewer_data(
    volumes: Mapping[str, np.ndarray], reference: np.ndarray, grid: Grid, region: np.ndarray, window: Window, mm: float
) -> dict[str, Any]:
    """One subject for the page's script: shape, affine and sprites of the target, then of `volumes` (name → `[X, Y, Z]` on `grid`).

    Volumes are cropped to `region`; where voxels are finer than `mm` or no cubes, they are resampled to cubes, `mm` or the finest side.
    """
    box = bounding_box(region, grid.voxel_size)
    crop = tuple(slice(a, b) for a, b in zip(*box, strict=True))
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ box.start
    small = Grid(region[crop].shape, affine)  # type: ignore[arg-type]
    side = max(mm, min(grid.voxel_size))
    cubes = all(abs(v / side - 1) < ALIKE for v in grid.voxel_size)
    shown = small if cubes else target_grid(small, side)
    sprites = {
        name: _sprite(data[crop] if cubes else resample(data[crop], small, shown, "linear"), window)
        for name, data in {TARGET: reference, **volumes}.items()
    }
    centre = np.linalg.inv(shown.affine) @ affine @ [*(head_centre(region, grid.voxel_size) - box.start), 1]
    nx = shown.shape[0]
    turn = np.array([[-1, 0, 0, nx - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    start = np.clip(np.round((turn @ centre)[:3]), 0, np.array(shown.shape) - 1)
    return {
        "shape": list(shown.shape),
        "start": [int(v) for v in start],
        "affine": (shown.affine @ turn).round(6).tolist(),
        "errorTop": _error_top(volumes, reference, region, window),
        "volumes": [{"name": name, "picture": uri} for name, uri in sprites.items()],
    }


def error_colours() -> str:
    """The 256 colours of errors, 'rrggbb' each."""
    return (colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes().hex()


def _sprite(data: np.ndarray, window: Window) -> str:
    """All sagittal slices from right to left in rows from the top, each with its top up and the back of the head to the left."""
    grey = np.clip((data - window.low) / (window.high - window.low), 0, 1)
    slices = (grey * 255).round().astype(np.uint8)[::-1, :, ::-1].transpose(0, 2, 1)  # [X, rows, columns]
    down = math.ceil(math.sqrt(len(slices)))
    across = math.ceil(len(slices) / down)
    padded = np.zeros((down * across, *slices.shape[1:]), np.uint8)
    padded[: len(slices)] = slices
    sheet = padded.reshape(down, across, *slices.shape[1:]).transpose(0, 2, 1, 3)
    return data_uri(webp(sheet.reshape(down * slices.shape[1], across * slices.shape[2])), "webp")


def _error_top(volumes: Mapping[str, np.ndarray], reference: np.ndarray, region: np.ndarray, window: Window) -> float:
    """The error shown brightest, as a share of the window: 99.5 % of the errors of all volumes inside the region are below."""
    if not volumes:
        return 1.0
    errors = np.concatenate([np.abs(data[region] - reference[region])[::7] for data in volumes.values()])
    return float(max(np.percentile(errors, 99.5) / (window.high - window.low), 1 / 255))
