"""Pairs: all the maps of one subject on one grid, and their slices.

    high        the truth                                           float32, in the window of `low`, about -1…1
    low         what was acquired, on the same grid                 float32, likewise
    reference   a second contrast of the same person                float32, in a window of its own
    bias        logarithm of the target's bias field                float32
    gradient    displacement by the target's gradient nonlinearity  float32, mm, three components
    jacobian    logarithm of that one's Jacobian determinant        float32
    labels      tissues or structures                               uint8 (or int16)
    mask        voxels that count                                   bool

In a volume the components of `gradient` lie along the grid's axes; in a slice they are along its rows, along its columns and through it,
whatever axis it is cut across, so that a network sees one convention [teacher, §II-A].
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from jaxsr.volume.geometry import Grid
from jaxsr.volume.quality import Quality

MapName = Literal["reference", "bias", "gradient", "jacobian", "labels", "mask"]
SQUARE = 1.5
OPTIONAL: tuple[MapName, ...] = get_args(MapName)  # maps that a pair may lack


class Pair(NamedTuple):
    """Maps `[X, Y, Z]` on `grid` (`gradient` `[X, Y, Z, 3]`); see the head of this file. What is not known is None.

    `scanned`: mm of the voxels that `low` was acquired with, along the grid's axes; `quality`: of what was acquired, along those,
    measured when it is asked for; `lacks`: root mean square of what `low` lacks of `high` in the head, of a stream that tells it.
    """

    high: np.ndarray
    low: np.ndarray
    grid: Grid
    reference: np.ndarray | None = None
    bias: np.ndarray | None = None
    gradient: np.ndarray | None = None
    jacobian: np.ndarray | None = None
    labels: np.ndarray | None = None
    mask: np.ndarray | None = None
    scanned: tuple[float, float, float] | None = None
    quality: Callable[[], Quality] | None = None
    lacks: float | None = None

    def maps(self, wanted: Sequence[str] = OPTIONAL) -> dict[str, np.ndarray]:
        """`high`, `low`, and those of `wanted` that there are."""
        optional = {name: getattr(self, name) for name in OPTIONAL if name in wanted}
        return {"high": self.high, "low": self.low} | {name: x for name, x in optional.items() if x is not None}


def made_of(name: str) -> str:
    """The map that `name` is derived from, which a file, a head or a scanner has; or `name` itself."""
    return "gradient" if name == "jacobian" else name


def cut(maps: dict[str, np.ndarray], axis: int, index: int) -> dict[str, np.ndarray]:
    """Slice `index` across `axis` (0, 1, 2: sagittal, coronal, axial) of each map: views `[H, W]`; `gradient` a copy `[H, W, 3]`."""
    slices = {name: np.moveaxis(x, axis, 0)[index] for name, x in maps.items()}
    if "gradient" in slices:
        slices["gradient"] = slices["gradient"][..., slice_frame(axis)]
    return slices


def beside(volume: np.ndarray, axis: int, index: int, context: int) -> np.ndarray:
    """The `context` slices before slice `index` across `axis` and as many after it, `[H, W, 2 context]`; see `Condition.beside`."""
    stack = np.moveaxis(volume, axis, 0)
    return np.stack([stack[np.clip(index + step, 0, len(stack) - 1)] for step in steps_beside(context)], -1)


def steps_beside(context: int) -> list[int]:
    """How many slices away each of those lies."""
    return [step for step in range(-context, context + 1) if step]


def planes(grid: Grid) -> list[int]:
    """Axes across which slices have about square pixels: one side at most `SQUARE` times the other; all three, where no plane has such."""
    sizes = grid.voxel_size
    square = [axis for axis in range(3) if _ratio([v for a, v in enumerate(sizes) if a != axis]) <= SQUARE]
    return square or [0, 1, 2]


def scale_of(scanned: Sequence[float], grid: Grid, axis: int) -> np.ndarray:
    """`Condition.scale` of slices of `grid` across `axis`, float32 `[3]`, of a scan with voxels of `scanned` mm along the grid's axes."""
    return coarser(scanned, grid)[slice_frame(axis)]


def told_quality(quality: Quality, axis: int) -> np.ndarray:
    """`Condition.quality` of slices across `axis`, where that is the scan's, float32 `[5]`."""
    return np.array([*(quality.sharpness[a] for a in slice_frame(axis)), quality.noise, 1 if quality.air else 2], np.float32)


def coarser(scanned: Sequence[float], grid: Grid) -> np.ndarray:
    """How many times coarser than those of `grid` voxels of `scanned` mm are along its axes, at least 1, float32 `[3]`."""
    return np.maximum(np.asarray(scanned) / np.asarray(grid.voxel_size), 1).astype(np.float32)


def _ratio(sizes: list[float]) -> float:
    return max(sizes) / min(sizes)


def slice_frame(axis: int) -> list[int]:
    """Which axes of the volume are a slice's rows, its columns, and the way through it."""
    return [*(a for a in range(3) if a != axis), axis]
