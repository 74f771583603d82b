"""A stream of cubes: of each all slices across all three axes, so that a loss can compare what `upscale` makes of them, their mean.

A cube of N³ voxels is cut as a volume is: N slices across its first axis, N across its second, N across its third, each `[N, N]`. They
follow each other in the stream: a batch of `3 N k` slices is `k` cubes. Slices beside them are those of the volume, in the cube or not.

A volume that holds no cubes as it has square pixels across one axis only, thick slices, may have three stacks of N slices across that in
place of one: `axes` of their samples is 1, of cubes 3.
"""

import threading
from typing import Any, NamedTuple, cast

import numpy as np

from jaxsr.data.augmentation import bend
from jaxsr.data.pairs import SQUARE, Pair, beside, coarser, planes, slice_frame, told_quality
from jaxsr.data.pipeline import FOREGROUND, LEAST_TISSUE, Cache, Sample, SliceStream
from jaxsr.data.subjects import Subjects
from jaxsr.volume.errors import VolumeError


class CubeStream(SliceStream):
    """The endless stream of the slices of cubes, random access; see the head of this file.

    Args: as of `SliceStream`, but `side` for the crop, voxels. `draws` slices of a visit are of `draws / (3 side)` cubes. A cube is flipped
      along its axes, which change places where `augment` transposes, and its window is bent by `gamma`.
      stacks: whether volumes without cubes serve as stacks, and samples say which they are of.

    Raises:
      ValueError: where `draws` are no whole cubes of each subject in the window, or slices would be varied each for itself.
    """

    def __init__(self, subjects: Subjects, side: int, *, draws: int, window: int = 4, stacks: bool = False, **how: Any):
        if draws % (3 * side * window):
            raise ValueError(f"draws must be a multiple of 3 side window, got {draws}, side {side} and window {window}")
        super().__init__(subjects, (side, side), draws=draws // (3 * side), window=window, **how)
        if self._augment.rotation or self._augment.scale or self._augment.elastic:
            raise ValueError("slices of a cube cannot be turned, magnified or deformed each for itself")
        # A thread that reads keeps its cube: others may push it out of the cache before it has all its slices.
        self._side, self._cubes, self._reading, self._stacks = side, Cache(self._make, 4), threading.local(), stacks

    def __exit__(self, *_: object) -> None:
        self._cubes.close()
        super().__exit__()

    def __getitem__(self, position: int) -> Sample:
        cube, place = divmod(int(position), 3 * self._side)
        held: tuple[int, list[Sample]] = getattr(self._reading, "held", (-1, []))
        if held[0] != cube:
            self._reading.held = held = (cube, self._cubes.get(cube))
        return held[1][place]

    def _check(self, pair: Pair, name: str) -> None:
        if min(pair.low.shape) < self._side or not (_holds_cubes(pair) or (self._stacks and _holds_stacks(pair))):
            sides, sizes = (" × ".join(f"{x:.3g}" for x in of) for of in (pair.low.shape, pair.grid.voxel_size))
            raise VolumeError(
                f"{name}: at this visit {sides} voxels of {sizes} mm hold no cube of {self._side} voxels, about as long along each axis, "
                "as method.fused takes them"
            )

    def _make(self, cube: int) -> list[Sample]:
        """The slices of the cube, or of the three stacks, at this place of the stream."""
        pair, visit, subject, rng = self._turn(cube)
        if _holds_cubes(pair):
            block = self._drawn(pair, rng)
            return [sample for axis in range(3) for sample in self._slices(pair, block, axis, [visit, subject], 3)]
        across = planes(pair.grid)[0]
        blocks = (self._drawn(pair, rng) for _ in range(3))
        return [sample for block in blocks for sample in self._slices(pair, block, block.order.index(across), [visit, subject], 1)]

    def _drawn(self, pair: Pair, rng: np.random.Generator) -> "_Place":
        """Where a cube lies, and how it is turned."""
        side = self._side
        for _ in range(20):  # as in a SliceStream
            corner = [int(rng.integers(n - side + 1)) for n in pair.low.shape]
            if np.mean(_block(pair.low, corner, side, 0) > FOREGROUND) > LEAST_TISSUE:
                break
        flips = [bool(self._augment.flip and rng.random() < 0.5) for _ in range(3)]
        order = [int(a) for a in (rng.permutation(3) if self._augment.transpose else range(3))]
        exponent = float(np.exp(self._augment.gamma * rng.standard_normal())) if self._augment.gamma else 1.0
        return _Place(corner, flips, order, exponent)

    def _slices(self, pair: Pair, block: "_Place", axis: int, of: list[int], axes: int) -> list[Sample]:
        """The slices of a block across its `axis`, of the visit and subject `of`."""
        side, margin, (corner, flips, order, exponent) = self._side, self._context, block

        def taken(volume: np.ndarray, margin: int) -> np.ndarray:
            x = _block(volume, corner, side, margin)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].transpose(order)
            return np.ascontiguousarray(x if exponent == 1.0 else bend(x, exponent), np.float32)

        around = taken(pair.low, margin)
        truth, low, across = np.moveaxis(taken(pair.high, 0), axis, 0), np.moveaxis(around, axis, 0), order[axis]
        inner = (slice(margin, margin + side),) * 2
        told: dict[str, Any] = {}
        if self._scale:
            assert pair.scanned is not None
            told["scale"] = coarser(pair.scanned, pair.grid)[order][slice_frame(axis)]
        if self._quality:
            assert pair.quality is not None
            quality = pair.quality()
            x, y, z = (quality.sharpness[a] for a in order)
            told["quality"] = told_quality(quality._replace(sharpness=(x, y, z)), axis)
        if self._lacks:
            told["lacks"] = np.float32(pair.lacks)
        if self._stacks:
            told["axes"] = np.float32(axes)
        samples = []
        for i in range(side):
            origin = np.array([*of, across, corner[across] + (side - 1 - i if flips[across] else i)])
            sample = {"high": truth[i, ..., None], "low": low[margin + i][inner][..., None], "origin": origin, **told}
            if margin:
                sample["beside"] = beside(around, axis, margin + i, margin)[inner]
            samples.append(cast(Sample, sample))
        return samples


class _Place(NamedTuple):
    """Where a cube lies in its volume, its axes that are flipped, their new order, and the exponent of its window."""

    corner: list[int]
    flips: list[bool]
    order: list[int]
    exponent: float


def _holds_cubes(pair: Pair) -> bool:
    return max(pair.grid.voxel_size) <= SQUARE * min(pair.grid.voxel_size)


def _holds_stacks(pair: Pair) -> bool:
    return len(planes(pair.grid)) == 1


def _block(volume: np.ndarray, corner: list[int], side: int, margin: int) -> np.ndarray:
    """`side` voxels of each axis from `corner` on, and `margin` more all around; the outermost stand for those beyond the volume."""
    around = [np.clip(np.arange(at - margin, at + side + margin), 0, n - 1) for at, n in zip(corner, volume.shape, strict=True)]
    return volume[np.ix_(*around)]
