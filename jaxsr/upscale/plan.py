"""What upscaling a volume will take, from its grid and the method alone: which axes serve, how slices are padded, how many there are."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxsr.methods.base import Method
from jaxsr.upscale.inputs import serving_axes
from jaxsr.volume.geometry import Grid, target_grid
from jaxsr.volume.slices import AXES, SliceMap, SliceMapKind, make_map

BUCKET = 16  # sides are padded to multiples of at least this, so that heads of about one size share their compiled programs


class Plan(NamedTuple):
    """What will be done with a volume.

    Attributes:
      grid: of the result.
      axes: slice axes that serve, by name.
      shapes: padded sides `(H, W)` of each.
      counts: slices of each.
      left_out: a sentence for each axis that does not serve.
    """

    grid: Grid
    axes: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]
    left_out: tuple[str, ...]

    @property
    def slices(self) -> int:
        """In all."""
        return sum(self.counts)

    @property
    def compilations(self) -> int:
        """Distinct shapes: each is a program of its own."""
        return len(set(self.shapes))

    def batches(self, batch_size: int) -> int:
        """Of `batch_size` slices, the last of each axis filled up."""
        return sum(-(-count // batch_size) for count in self.counts)


def make_plan(method: Method, grid: Grid, to: float | Grid | None, axes: Sequence[str], slice_map: SliceMapKind = "pad") -> Plan:
    """For a volume on `grid`, at `to` mm or on that grid (None: its own) along `axes`. Raises VolumeError where none of them serves."""
    target = to if isinstance(to, Grid) else target_grid(grid, to) if to else grid
    serving, left_out = serving_axes(grid.shape, axes)
    shapes = tuple(map_of(method, target.shape, AXES[name], slice_map).shape for name in serving)
    return Plan(target, serving, shapes, tuple(target.shape[AXES[name]] for name in serving), left_out)


def map_of(method: Method, shape: tuple[int, ...], axis: int, kind: SliceMapKind) -> SliceMap:
    """How slices across `axis` of a volume of `shape` are brought to sides that the method takes."""
    height, width = (n for a, n in enumerate(shape) if a != axis)
    multiple = int(np.lcm(method.multiple, BUCKET)) if kind == "pad" else method.multiple
    return make_map(kind, (height, width), multiple)
