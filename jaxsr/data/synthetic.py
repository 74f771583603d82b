"""Endless synthetic people from the label maps in a folder.

A person is one of the split's maps with a key's deformation, contrast and lesions. Maps, not the people made of them, are split: no map
is in two splits, so nobody is evaluated on anatomy that training has seen. Who is who among the maps, `jaxsr.data.people` says by their
paths below the folder, and the split is `split_by_subject`: it depends neither on where the folder lies nor on the order of its files.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsr.data.anatomy.deformation import Variation
from jaxsr.data.anatomy.head import Head
from jaxsr.data.anatomy.label_heads import VARIATION, render_labels
from jaxsr.data.anatomy.labels import FIELD_OF_VIEW, LabelMap, read_label_map
from jaxsr.data.splits import Split
from jaxsr.data.subjects import RenderedSubjects, stable_hash
from jaxsr.volume.decode import open_image
from jaxsr.volume.geometry import Grid, target_grid
from jaxsr.volume.io import SUFFIXES, VolumeError

_HELD = 12  # label maps in memory, some 15 MB each at 1 mm


class LabelSubjects(RenderedSubjects):
    """`count` people of one split, rendered from the label maps `paths` below `root`, which are the split's own.

    `how` is that of `RenderedSubjects`; labels are indices of `jaxsr.data.anatomy.STRUCTURES`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        root: Path,
        count: int,
        split: Split,
        *,
        voxel_size: float,
        seed: int = 0,
        variation: Variation = VARIATION,
        **how: Any,
    ):
        if not paths:
            raise VolumeError(f"{root}: no label maps are in the split {split}: 8:1:1 of fewer than five people leaves nobody to hold out")
        named = sorted((path.relative_to(root).as_posix(), path) for path in paths)
        chosen = [named[stable_hash(f"{seed}/{split}/{i}") % len(named)] for i in range(count)]
        self.paths = [path for _, path in chosen]
        self._voxel_size, self._variation = voxel_size, variation
        one = Grid(tuple(round(side) for side in FIELD_OF_VIEW), np.diag([1.0, 1.0, 1.0, 1.0]))  # type: ignore[arg-type]
        super().__init__(target_grid(one, voxel_size), [f"{name}#{i:04d}" for i, (name, _) in enumerate(chosen)], split, seed=seed, **how)
        self._rendered = tuple({*self._rendered, "mask"})  # where a skull was taken off, the acquired volume is zero too
        self._held: OrderedDict[Path, LabelMap] = OrderedDict()
        self._lock = threading.Lock()

    def head(self, index: int) -> Head:
        key, label_map = jax.random.fold_in(self._key, index), self._map(self.paths[index])
        return render_labels(key, label_map, self.grid.shape, self._voxel_size, self._contrast, self._variation, self._rendered)

    def _map(self, path: Path) -> LabelMap:
        with self._lock:
            if path not in self._held:
                self._held[path] = read_label_map(path)
                while len(self._held) > _HELD:
                    self._held.popitem(last=False)
            self._held.move_to_end(path)
            return self._held[path]


def find_label_maps(folder: Path) -> tuple[list[Path], list[str]]:
    """Volumes under `folder`, sorted, that can be label maps by their headers, and a sentence for each that cannot.

    Raises:
      VolumeError: where there is no such folder or nothing usable in it.
    """
    if not folder.is_dir():
        raise VolumeError(f"{folder} is not a folder: data.labels names a folder of label maps ({', '.join(SUFFIXES)})")
    usable, left_out = [], []
    for path in sorted(p for p in folder.rglob("*") if p.name.endswith(SUFFIXES) and not p.name.startswith(".")):
        try:
            shape = open_image(path).shape
        except VolumeError as error:
            left_out.append(f"{path}: {error}")
            continue
        if len(shape) < 3 or np.prod(shape[3:]) != 1:
            left_out.append(f"{path}: an array of {' × '.join(map(str, shape))} is not one volume")
        else:
            usable.append(path)
    if not usable:
        reasons = "\n  ".join(left_out) or f"no file ends in {', '.join(SUFFIXES)}"
        raise VolumeError(f"{folder}: no label map is in it:\n  {reasons}")
    return usable, left_out
