"""What upscaling a volume will take, from its grid and the method alone: which axes serve, how slices are padded, how many there are.

A method that goes from voxel size to voxel size (`pixel` mm, the student) works on slices of its own pixels, whatever is asked for: what
comes out is brought to the target by resampling, which does not alias. It is told, for every plane, from which voxel size it is to go to
which: from the coarser of the two that the scan has in that plane, to the finer of the two that the target has. A plane in which it has
nothing to do is passed on as it is.

A method for a range of pixels (`pixel_range` mm) works on those of the target, but no finer than the range: what is finer is resampled
from there. Along an axis where the scan is as fine as the target nothing is to be made finer, and the target's voxels are kept; slices
whose pixels are then far from square, which it has not learnt from, do not serve.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxsr.data.pairs import planes
from jaxsr.methods.base import Method, Request
from jaxsr.methods.condition import passes_of, told_to
from jaxsr.upscale.inputs import Sizes, resolving, serving_axes
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.geometry import Grid, target_grid
from jaxsr.volume.slices import AXES, SliceMap, SliceMapKind, make_map

BUCKET = 16  # sides are padded to multiples of at least this, so that heads of about one size share their compiled programs

FINER = 1.05  # an axis is to be made finer where the scan's voxels are more than so many times the target's


class NothingToDo(VolumeError):
    """The volume is what it was to become already."""


class Plan(NamedTuple):
    """What will be done with a volume.

    Attributes:
      grid: of the result.
      work: of the slices that are upscaled; `grid` for most methods.
      axes: slice axes that serve, by name.
      requests: what is asked for along each; None: slices are passed on as they are.
      shapes: padded sides `(H, W)` of each.
      counts: slices of each that are upscaled, in each pass.
      left_out: a sentence for each axis that does not serve, or along which there is nothing to do.
      passes: how many times the volume is gone over.
    """

    grid: Grid
    work: Grid
    axes: tuple[str, ...]
    requests: tuple[Request | None, ...]
    shapes: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]
    left_out: tuple[str, ...]
    passes: int = 1

    @property
    def slices(self) -> int:
        """Of all axes, in each pass."""
        return sum(self.counts)

    @property
    def runs(self) -> list[tuple[tuple[int, int], Request, int]]:
        """Sides, request and slices of each axis that is upscaled, of each pass."""
        each = list(zip(self.shapes, self.requests, self.counts, strict=True))
        return [
            (sides, in_pass(asked, number, self.passes), count) for number in range(self.passes) for sides, asked, count in each if asked
        ]

    @property
    def programs(self) -> set[tuple[tuple[int, int], Request]]:
        """What is compiled: a program for each shape and request."""
        return {(sides, request) for sides, request, _ in self.runs}

    @property
    def compilations(self) -> int:
        return len(self.programs)

    def counts_of(self, sides: tuple[int, int], request: Request) -> tuple[int, ...]:
        """How many slices each run has that this program is for."""
        return tuple(count for *program, count in self.runs if program == [sides, request])


def make_plan(
    method: Method,
    grid: Grid,
    to: float | Grid | None,
    axes: Sequence[str],
    slice_map: SliceMapKind = "pad",
    request: Request | None = None,
    from_mm: Sizes | None = None,
) -> Plan:
    """For a volume on `grid`, at `to` mm or on that grid (None: its own) along `axes`.

    Args:
      request: None: the method's default.
      from_mm: what the volume resolves, where that is more than its voxel size: a scan that was interpolated.

    Raises:
      NothingToDo: where a method has nothing to do along any axis; VolumeError: where none of `axes` serves.
    """
    target = to if isinstance(to, Grid) else target_grid(grid, to) if to else grid
    serving, left_out = serving_axes(grid.shape, axes)
    request = request or method.default_request
    pixel = getattr(method, "pixel", None)
    between = getattr(method, "pixel_range", None)
    resolves = resolving(grid.voxel_size, from_mm)
    work = target_grid(grid, pixel) if pixel else target
    if between:
        work = working_grid(target, resolves, between)
        square = [name for name in serving if AXES[name] in planes(work)] or list(serving)
        left_out = (*left_out, *(f"{name} slices have pixels that are far from square" for name in serving if name not in square))
        serving = tuple(square)
    requests = tuple(plane_request(method, request, resolves, target.voxel_size, AXES[name]) for name in serving)
    if not any(requests):
        said = " × ".join(f"{mm:.3g}" for mm in resolves)
        raise NothingToDo(
            f"already at the target resolution: {said} mm, and {min(target.voxel_size):.3g} mm is asked for of a model that makes "
            f"{pixel:g} mm at the finest; where the scan was interpolated, say with --from-mm what it resolves, or found"
        )
    still = tuple(f"{name} slices are passed on as they are" for name, of in zip(serving, requests, strict=True) if of is None)
    shapes = tuple(map_of(method, work.shape, AXES[name], slice_map).shape for name in serving)
    counts = tuple(work.shape[AXES[name]] if of else 0 for name, of in zip(serving, requests, strict=True))
    return Plan(target, work, serving, requests, shapes, counts, (*left_out, *still), passes_of(method))


def in_pass(request: Request, number: int, passes: int) -> Request:
    """What is asked for in the pass `number`, from 0: before the last one it is an estimate, in one sampling step."""
    return request if number == passes - 1 else request._replace(steps=1)


def is_told(method: Method) -> bool:
    """Whether what is done depends on what a scan resolves."""
    return bool(told_to(method)) or any(getattr(method, name, None) is not None for name in ("pixel", "pixel_range"))


def default_size(method: Method, trained: float, resolves: Sizes) -> float:
    """mm of the voxels that a scan that `resolves` so much is brought to where nothing was asked for: what the method was `trained` for.

    A method for a range of pixels goes to that, or to the scan's finest side if that is finer; a scan that is as fine everywhere already,
    to the finest of the range.
    """
    between = getattr(method, "pixel_range", None)
    if not between:
        return trained
    size = float(np.clip(min(resolves), between[0], trained))
    return round(size, 4) if max(resolves) > FINER * size else between[0]


def working_grid(target: Grid, from_mm: Sizes, between: tuple[float, float]) -> Grid:
    """Where a method for pixels `between` two sizes works, the output being on `target`: that itself, or as fine as it may be.

    Raises:
      NothingToDo: where the scan is as fine as the target along every axis.
    """
    finer = [has > FINER * wanted for has, wanted in zip(from_mm, target.voxel_size, strict=True)]
    if not any(finer):
        said, wanted = (" × ".join(f"{mm:.3g}" for mm in sizes) for sizes in (from_mm, target.voxel_size))
        raise NothingToDo(
            f"already at the target resolution: {said} mm, and {wanted} mm is asked for; ask for finer voxels with --to-mm "
            "or, where the scan was interpolated, say with --from-mm what it resolves, or found"
        )
    x, y, z = (max(mm, between[0]) if needed else mm for mm, needed in zip(target.voxel_size, finer, strict=True))
    return target if (x, y, z) == target.voxel_size else target_grid(target, (x, y, z))


def plane_request(method: Method, request: Request, from_mm: Sizes, to_mm: Sizes, axis: int) -> Request | None:
    """What `method` is asked for of slices across `axis`; None where it has nothing to do with them."""
    if getattr(method, "pixel", None) is None:
        return request
    coarser = max(mm for a, mm in enumerate(from_mm) if a != axis)
    finer = min(mm for a, mm in enumerate(to_mm) if a != axis)
    # Rounded, as a request is a static argument: heads of one voxel size but for its last digits share a program.
    asked = request._replace(from_mm=round(coarser, 3), to_mm=round(finer, 3))
    return None if method.idle(asked) else asked  # type: ignore[attr-defined]


def map_of(method: Method, shape: tuple[int, ...], axis: int, kind: SliceMapKind) -> SliceMap:
    """How slices across `axis` of a volume of `shape` are brought to sides that the method takes."""
    height, width = (n for a, n in enumerate(shape) if a != axis)
    multiple = int(np.lcm(method.multiple, BUCKET)) if kind == "pad" else method.multiple
    return make_map(kind, (height, width), multiple)
