"""Endless synthetic people from the label maps in a folder.

A person is one of the split's maps with a key's deformation, contrast and lesions. Maps, not the people made of them, are split: no map
is in two splits, so nobody is evaluated on anatomy that training has seen. Who is who among the maps, `jaxsr.data.people` says by their
paths below the folder, and the split is `split_by_subject`: it depends neither on where the folder lies nor on the order of its files.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxsr.data.anatomy.deformation import Variation
from jaxsr.data.anatomy.head import Head
from jaxsr.data.anatomy.label_heads import VARIATION, render_labels
from jaxsr.data.anatomy.labels import FIELD_OF_VIEW, LabelMap, read_label_map
from jaxsr.data.pairs import Pair
from jaxsr.data.splits import SPLITS, Split
from jaxsr.data.subjects import pair_of_head, stable_hash
from jaxsr.physics.acquisition import Acquisition
from jaxsr.volume.decode import open_image
from jaxsr.volume.geometry import Grid, Kind, target_grid
from jaxsr.volume.io import SUFFIXES, Volume, VolumeError

_HELD = 12  # label maps in memory, some 15 MB each at 1 mm


class LabelSubjects:
    """`count` people of one split, rendered from the label maps `paths` below `root`, which are the split's own."""

    def __init__(
        self,
        paths: Sequence[Path],
        root: Path,
        count: int,
        split: Split,
        *,
        voxel_size: float,
        acquisition: Acquisition,
        seed: int = 0,
        contrast: str = "random",
        interpolation: Kind = "cubic",
        maps: tuple[str, ...] = (),
        biased: bool = False,
        variation: Variation = VARIATION,
    ):
        if not paths:
            raise VolumeError(f"{root}: no label maps are in the split {split}: 8:1:1 of fewer than five people leaves nobody to hold out")
        named = sorted((path.relative_to(root).as_posix(), path) for path in paths)
        chosen = [named[stable_hash(f"{seed}/{split}/{i}") % len(named)] for i in range(count)]
        self.ids = [f"{name}#{i:04d}" for i, (name, _) in enumerate(chosen)]
        self.paths = [path for _, path in chosen]
        # Heads and acquisitions have keys of their own, as those of the embedded set.
        place = SPLITS.index(split)
        self._key, self._acquisition_key = (jax.random.fold_in(jax.random.key(seed), i) for i in (place, len(SPLITS) + place))
        self._voxel_size, self._acquisition, self._contrast, self._interpolation = voxel_size, acquisition, contrast, interpolation
        self._maps, self._biased, self._variation = maps, biased, variation
        one = Grid(tuple(round(side) for side in FIELD_OF_VIEW), np.diag([1.0, 1.0, 1.0, 1.0]))  # type: ignore[arg-type]
        self.grid = target_grid(one, voxel_size)
        self._held: OrderedDict[Path, LabelMap] = OrderedDict()
        self._lock = threading.Lock()

    def head(self, index: int) -> Head:
        """The person's head with every map that it can come with."""
        key = jax.random.fold_in(self._key, index)
        wanted = tuple(m for m in self._maps if m != "labels")
        wanted = tuple({*wanted, "mask", *(["bias"] if self._biased else [])})
        return render_labels(key, self._map(self.paths[index]), self.grid.shape, self._voxel_size, self._contrast, self._variation, wanted)

    def truth(self, index: int) -> Volume:
        """The head itself, signal about 0…1."""
        return Volume(np.asarray(self.head(index).image), self.grid.affine)

    def labels(self, index: int) -> Volume:
        """Indices of `jaxsr.data.anatomy.STRUCTURES`, as float32."""
        return Volume(np.asarray(self.head(index).labels, np.float32), self.grid.affine)

    def load(self, index: int, visit: int = 0) -> Pair:
        key = jax.random.fold_in(jax.random.fold_in(self._acquisition_key, index), visit)
        return pair_of_head(self.head(index), self.grid, self._acquisition, key, self._interpolation, maps=self._maps, biased=self._biased)

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
