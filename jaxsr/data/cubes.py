"""A stream of cubes: of each all slices across all three axes, so that a loss can compare what `upscale` makes of them, their mean.

A cube of N³ voxels is cut as a volume is: N slices across its first axis, N across its second, N across its third, each `[N, N]`. They
follow each other in the stream: a batch of `3 N k` slices is `k` cubes. Slices beside them are those of the volume, in the cube or not.
"""

import threading
from typing import Any

import numpy as np

from jaxsr.data.augmentation import bend
from jaxsr.data.pairs import SQUARE, Pair, beside, coarser, slice_frame
from jaxsr.data.pipeline import FOREGROUND, LEAST_TISSUE, Cache, Sample, SliceStream
from jaxsr.data.subjects import Subjects
from jaxsr.volume.errors import VolumeError


class CubeStream(SliceStream):
    """The endless stream of the slices of cubes, random access; see the head of this file.

    Args: as of `SliceStream`, but `side` for the crop, voxels. `draws` slices of a visit are of `draws / (3 side)` cubes. A cube is flipped
      along its axes, which change places where `augment` transposes, and its window is bent by `gamma`.

    Raises:
      ValueError: where `draws` are no whole cubes of each subject in the window, or slices would be varied each for itself.
    """

    def __init__(self, subjects: Subjects, side: int, *, draws: int, window: int = 4, **how: Any):
        if draws % (3 * side * window):
            raise ValueError(f"draws must be a multiple of 3 side window, got {draws}, side {side} and window {window}")
        super().__init__(subjects, (side, side), draws=draws // (3 * side), window=window, **how)
        if self._augment.rotation or self._augment.scale or self._augment.elastic:
            raise ValueError("slices of a cube cannot be turned, magnified or deformed each for itself")
        # A thread that reads keeps its cube: others may push it out of the cache before it has all its slices.
        self._side, self._cubes, self._reading = side, Cache(self._make, 4), threading.local()

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
        if max(pair.grid.voxel_size) > SQUARE * min(pair.grid.voxel_size) or min(pair.low.shape) < self._side:
            sides, sizes = (" × ".join(f"{x:.3g}" for x in of) for of in (pair.low.shape, pair.grid.voxel_size))
            raise VolumeError(
                f"{name}: at this visit {sides} voxels of {sizes} mm hold no cube of {self._side} voxels, about as long along each axis, "
                "as method.fused takes them"
            )

    def _make(self, cube: int) -> list[Sample]:
        """The slices of the cube at this place of the stream."""
        pair, visit, subject, rng = self._turn(cube)
        side, margin = self._side, self._context
        for _ in range(20):  # as in a SliceStream
            corner = [int(rng.integers(n - side + 1)) for n in pair.low.shape]
            if np.mean(_block(pair.low, corner, side, 0) > FOREGROUND) > LEAST_TISSUE:
                break
        flips = [bool(self._augment.flip and rng.random() < 0.5) for _ in range(3)]
        order = [int(a) for a in (rng.permutation(3) if self._augment.transpose else range(3))]
        exponent = float(np.exp(self._augment.gamma * rng.standard_normal())) if self._augment.gamma else 1.0

        def taken(volume: np.ndarray, margin: int) -> np.ndarray:
            x = _block(volume, corner, side, margin)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].transpose(order)
            return np.ascontiguousarray(x if exponent == 1.0 else bend(x, exponent), np.float32)

        high, around = taken(pair.high, 0), taken(pair.low, margin)
        inner = (slice(margin, margin + side),) * 2
        scale = None
        if self._scale:
            assert pair.scanned is not None
            scale = coarser(pair.scanned, pair.grid)[order]
        samples = []
        for axis in range(3):
            truth, low, of = np.moveaxis(high, axis, 0), np.moveaxis(around, axis, 0), order[axis]
            for i in range(side):
                origin = np.array([visit, subject, of, corner[of] + (side - 1 - i if flips[of] else i)])
                sample = Sample(high=truth[i, ..., None], low=low[margin + i][inner][..., None], origin=origin)
                if margin:
                    sample["beside"] = beside(around, axis, margin + i, margin)[inner]
                if scale is not None:
                    sample["scale"] = scale[slice_frame(axis)]
                samples.append(sample)
        return samples


def _block(volume: np.ndarray, corner: list[int], side: int, margin: int) -> np.ndarray:
    """`side` voxels of each axis from `corner` on, and `margin` more all around; the outermost stand for those beyond the volume."""
    around = [np.clip(np.arange(at - margin, at + side + margin), 0, n - 1) for at, n in zip(corner, volume.shape, strict=True)]
    return volume[np.ix_(*around)]
