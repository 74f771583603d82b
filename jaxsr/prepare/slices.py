"""From a scan's maps to its records: slices along three axes, those without a head left out."""

from collections.abc import Collection, Iterator

import numpy as np

from jaxsr.data.pairs import cut
from jaxsr.data.records import encode
from jaxsr.prepare.scan import TISSUE, Prepared
from jaxsr.volume.slices import AXES

LEAST_COVERED = 0.9  # share of a slice's tissue that all volumes must have seen


def kept_slices(prepared: Prepared, least_tissue: float, axes: Collection[str] = tuple(AXES)) -> tuple[list[int], list[int], list[int]]:
    """Which slices across each of `axes` hold enough tissue, nearly all of it seen by every volume."""
    tissue = prepared.pair.high > TISSUE
    if prepared.pair.mask is not None:
        tissue &= prepared.pair.mask
    seen = tissue & prepared.covered
    kept: list[list[int]] = []
    for name, axis in AXES.items():
        if name not in axes:
            kept.append([])
            continue
        across = tuple(a for a in range(3) if a != axis)
        amount, covered = tissue.sum(across), seen.sum(across)
        pixels = tissue.size // tissue.shape[axis]
        enough = (amount >= max(1, least_tissue * pixels)) & (covered >= LEAST_COVERED * amount)
        kept.append(np.flatnonzero(enough).tolist())
    return kept[0], kept[1], kept[2]


def records(prepared: Prepared, names: tuple[str, ...], kept: tuple[list[int], list[int], list[int]], dtype: str) -> Iterator[bytes]:
    """The kept slices, axis by axis, as records of the maps `names`."""
    maps = prepared.pair.maps(names)
    maps = {name: x.astype(dtype) if x.dtype.kind == "f" else x for name, x in maps.items()}
    for axis, indices in enumerate(kept):
        for index in indices:
            yield encode(cut(maps, axis, index))
