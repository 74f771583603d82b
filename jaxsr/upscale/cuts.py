"""The slices of a volume and its maps across one axis, as batches are made of them: views, read where they are asked for."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxsr.data.pairs import slice_frame, steps_beside
from jaxsr.methods.condition import MAP_CHANNELS
from jaxsr.volume.slices import take_slices

# Of a `Condition` beside `low`, on the target grid: `[X, Y, Z]`; gradient `[X, Y, Z, 3]`, along the grid's axes.
Maps = Mapping[str, np.ndarray]
Cuts = Mapping[str, "Sequence[np.ndarray | Shifted]"]  # of `low` and maps: slices across one axis, `[n, H, W]` each, one a channel
Told = Mapping[str, np.ndarray]  # of a condition, what is the same for all slices across one axis


class Shifted:
    """Slices `step` further on in a stack of them, `[n, H, W]`, read as they are asked for; the outermost stands for those beyond."""

    def __init__(self, stack: np.ndarray, step: int):
        self._stack, self._at = stack, np.clip(np.arange(len(stack)) + step, 0, len(stack) - 1)

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, indices: slice | np.ndarray) -> np.ndarray:
        return self._stack[self._at[indices]]


def check_shapes(maps: Maps, shape: tuple[int, ...]) -> None:
    """Raises ValueError for maps that a condition has not, or that do not lie on a volume of `shape`."""
    for name, data in maps.items():
        if name == "low" or name not in MAP_CHANNELS:
            raise ValueError(f"a condition has no map {name!r} beside the volume: it takes {', '.join(list(MAP_CHANNELS)[1:])}")
        expected = shape if MAP_CHANNELS[name] == 1 else (*shape, MAP_CHANNELS[name])
        if data.shape != expected:
            raise ValueError(f"the map {name!r} has shape {data.shape}, expected {expected}")


def cut_across(name: str, data: np.ndarray, axis: int) -> list[np.ndarray]:
    """The slices of a map across `axis`, views `[n, H, W]`, one a channel: of a vector along rows, along columns and through them."""
    if MAP_CHANNELS[name] == 1:
        return [take_slices(data, axis)]
    return [take_slices(data[..., component], axis) for component in slice_frame(axis)]


def beside_across(volume: np.ndarray, axis: str, context: int) -> list[Shifted]:
    """The slices of `volume` on either side of those across `axis`."""
    return [Shifted(take_slices(volume, axis), step) for step in steps_beside(context)]


def indices_of(cuts: Cuts) -> np.ndarray:
    """Indices of all slices."""
    return np.arange(len(cuts["low"][0]))


def picked(part: np.ndarray | Shifted, indices: np.ndarray) -> np.ndarray:
    """Slices by ascending `indices`; neighbours as a view."""
    first, last = int(indices[0]), int(indices[-1])
    return part[first : last + 1] if last - first == len(indices) - 1 else part[indices]
