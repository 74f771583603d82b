"""Subjects: where pairs of volumes come from, and who may learn from whom.

A subject is one person, however many volumes of them there are. A `Subjects` collection yields pairs on one grid:

    high   the truth, at the voxel size that the run is about
    low    what an acquisition made of it, brought back to that grid by the same interpolation that `upscale` uses

both in the intensity window of the *acquired* volume, because that is all there is to go by when upscaling.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from jaxsr.data.acquired import Acquisitions, drawn_acquisition, make_pair, pair_of_head
from jaxsr.data.anatomy import Head, render, tissue_maps
from jaxsr.data.pairs import Pair as Pair
from jaxsr.data.pairs import made_of
from jaxsr.data.people import person_of
from jaxsr.data.splits import SPLITS, assign_splits
from jaxsr.data.splits import Split as Split
from jaxsr.data.variety import Variety, draw_sigma, smooth, vary
from jaxsr.volume.decode import open_image
from jaxsr.volume.foreground import foreground
from jaxsr.volume.geometry import Grid, Kind, resample, target_grid
from jaxsr.volume.header import place
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import SUFFIXES, Volume, VolumeError, read_volume, straighten
from jaxsr.volume.quality import once_asked

COARSER = 1.25  # a volume whose voxels are larger than this times the target's is no truth for it


class Subjects(Protocol):
    """A finite collection; `load(index, visit)` is a pure function, and `visit` draws another acquisition of the same person."""

    @property
    def ids(self) -> Sequence[str]: ...

    def load(self, index: int, visit: int = 0) -> Pair: ...


class MixedSubjects:
    """People of several sources. Whose turn it is, is drawn: a source by its share, and anybody in it alike, however many they are.

    Args:
      parts: each source and its share of the turns, above 0; shares need not add up to one.
    """

    def __init__(self, parts: Sequence[tuple[Subjects, float]]):
        self._parts = [part for part, _ in parts]
        self._shares = np.array([share for _, share in parts]) / sum(share for _, share in parts)
        self._starts = np.cumsum([0, *(len(part.ids) for part in self._parts)])
        self.ids = [name for part in self._parts for name in part.ids]

    def load(self, index: int, visit: int = 0) -> Pair:
        part = int(np.searchsorted(self._starts, index, "right")) - 1
        return self._parts[part].load(index - int(self._starts[part]), visit)

    def turn(self, visit: int, seed: int) -> int:
        """The index of whoever comes to the `visit`-th place of a stream."""
        rng = np.random.default_rng((seed, 3, visit))
        part = int(rng.choice(len(self._parts), p=self._shares))
        return int(self._starts[part]) + int(rng.integers(len(self._parts[part].ids)))


class RenderedSubjects(ABC):
    """Endless synthetic people of one split; whoever inherits says how a head is rendered.

    Args:
      grid: of every pair, `[X, Y, Z]` voxels.
      ids: everybody's name.
      acquisition: or several, of which each visit draws one.
      maps: of those of a pair, what pairs come with.
      carries: which of the maps `bias` and `gradient` the truth shows: that bias field, that displacement.
      smooth: voxels, as of `jaxsr.data.variety`: rendered heads are sharper than many a scan.
    """

    def __init__(
        self,
        grid: Grid,
        ids: Sequence[str],
        split: Split,
        *,
        acquisition: Acquisitions,
        seed: int = 0,
        contrast: str = "random",
        interpolation: Kind = "cubic",
        maps: tuple[str, ...] = (),
        carries: tuple[str, ...] = (),
        smooth: float = 0.0,
    ):
        # Heads and acquisitions have keys of their own: were one folded from the other, a visit could draw the noise that shaped the head.
        place = SPLITS.index(split)
        self._key, self._acquisition_key = (jax.random.fold_in(jax.random.key(seed), i) for i in (place, len(SPLITS) + place))
        self.grid, self.ids = grid, ids
        self._acquisition, self._contrast, self._interpolation = acquisition, contrast, interpolation
        self._maps, self._carries, self._smooth, self._seed = maps, carries, smooth, seed
        self._rendered = tuple({made_of(name) for name in (*maps, *carries)} - {"labels"})  # labels come with every head

    @abstractmethod
    def head(self, index: int) -> Head:
        """The person's head with the maps that it is to come with."""

    def truth(self, index: int) -> Volume:
        """The head itself, signal about 0…1."""
        return Volume(np.asarray(self.head(index).image), self.grid.affine)

    def labels(self, index: int) -> Volume:
        """Indices of the structures that heads are made of, as float32."""
        return Volume(np.asarray(self.head(index).labels, np.float32), self.grid.affine)

    def load(self, index: int, visit: int = 0) -> Pair:
        key = jax.random.fold_in(jax.random.fold_in(self._acquisition_key, index), visit)
        acquisition = drawn_acquisition(key, self._acquisition)
        head = self.head(index)
        if self._smooth:
            rng = np.random.default_rng((index, visit, self._seed, 1))
            mask = None if head.mask is None else np.asarray(head.mask)
            head = head._replace(image=jnp.asarray(smooth(np.asarray(head.image), draw_sigma(self._smooth, rng), mask)))
        return pair_of_head(head, self.grid, acquisition, key, self._interpolation, maps=self._maps, carries=self._carries)


class AnatomySubjects(RenderedSubjects):
    """The embedded set: heads rendered from tissue maps. Splits differ in the seeds of their deformations and contrasts.

    `how` is that of `RenderedSubjects`; labels are indices of `jaxsr.data.anatomy.TISSUES`.
    """

    def __init__(self, count: int, split: Split, *, voxel_size: float, **how: Any):
        self._voxel_size = voxel_size
        super().__init__(target_grid(template_grid(), voxel_size), [f"anatomy-{split}-{i:04d}" for i in range(count)], split, **how)

    def head(self, index: int) -> Head:
        key = jax.random.fold_in(self._key, index)
        return render(key, self.grid.shape, self._voxel_size, self._contrast, maps=self._rendered)


class FolderSubjects:
    """High-resolution volumes under `root`, of any orientation, size and voxel size; the low-resolution side is simulated.

    A volume goes by its path below `root`: what is simulated of it does not depend on where the folder lies or what else is in it.

    Args:
      voxel_size: mm of the truth.
      native: a volume is left as coarse as it is along an axis where it is coarser than that.
      acquisition: or several, of which each visit draws one.
      variety: what else a visit draws of a volume.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        root: Path,
        *,
        voxel_size: float,
        acquisition: Acquisitions,
        native: bool = False,
        variety: Variety = Variety(),
        seed: int = 0,
        interpolation: Kind = "cubic",
    ):
        if not paths:
            raise VolumeError("no volumes to train on: the folder's split is empty")
        self.paths = list(paths)
        self.ids = [p.relative_to(root).as_posix() for p in paths]
        self._key, self._seed, self._voxel_size, self._acquisition = jax.random.key(seed), seed, voxel_size, acquisition
        self._native, self._variety, self._interpolation = native, variety, interpolation

    def load(self, index: int, visit: int = 0) -> Pair:
        volume, code = straighten(read_volume(self.paths[index])), stable_hash(self.ids[index])
        if self._variety != Variety():
            volume = vary(replace(volume, data=np.maximum(volume.data, 0)), self._variety, np.random.default_rng((code, visit, self._seed)))
        source = volume.grid
        x, y, z = (max(mm, self._voxel_size) if self._native else self._voxel_size for mm in source.voxel_size)
        grid = target_grid(source, (x, y, z))
        data = np.maximum(resample(volume.data, source, grid), 0)  # magnitudes; interpolation may leave a little below zero
        mask = None
        if np.random.default_rng((code, visit, self._seed, 1)).random() < self._variety.cleared:
            mask = ndimage.binary_dilation(foreground(data))
            data = np.where(mask, data, np.float32(0))
        key = jax.random.fold_in(jax.random.fold_in(self._key, code), visit)
        return make_pair(Volume(data, grid.affine), drawn_acquisition(key, self._acquisition), key, self._interpolation, mask=mask)


class ScanSubjects:
    """Scans under `root` of which there is no truth, brought to `voxel_size`: what a method is to be adapted to. Both sides of their pairs
    are the scan itself."""

    def __init__(self, paths: Sequence[Path], root: Path, *, voxel_size: float, interpolation: Kind = "cubic"):
        self.paths = list(paths)
        self.ids = [path.relative_to(root).as_posix() for path in paths]
        self._voxel_size, self._interpolation = voxel_size, interpolation

    def load(self, index: int, visit: int = 0) -> Pair:
        volume = straighten(read_volume(self.paths[index]))
        grid, window = target_grid(volume.grid, self._voxel_size), fit_window(volume.data)
        low = window.forward(resample(volume.data, volume.grid, grid, self._interpolation))
        return Pair(low, low, grid, scanned=volume.voxel_size, quality=once_asked(volume.data, window))


def template_grid() -> Grid:
    """The field of view of the embedded tissue maps."""
    maps = tissue_maps()
    affine = np.diag([maps.spacing, maps.spacing, maps.spacing, 1.0])
    affine[:3, 3] = maps.origin
    return Grid((maps.logits.shape[1], maps.logits.shape[2], maps.logits.shape[3]), affine)


def find_volumes(folder: Path, voxel_size: float, key: str = "data.volumes") -> tuple[list[Path], list[str]]:
    """Volumes under `folder` that can be a truth at `voxel_size` mm, sorted, and a sentence for each that cannot.

    Args:
      voxel_size: infinite for volumes that need not be one.
      key: of the config, that names the folder.

    Raises:
      VolumeError: where there is no such folder or nothing usable in it.
    """
    if not folder.is_dir():
        raise VolumeError(f"{folder} is not a folder: {key} names a folder of volumes ({', '.join(SUFFIXES)})")
    found = sorted(p for p in folder.rglob("*") if p.name.endswith(SUFFIXES) and not p.name.startswith("."))
    usable, left_out, coarse = [], [], []
    for path in found:  # headers only: a large set must start quickly
        try:
            image = open_image(path)
            size = np.linalg.norm(place(image).affine[:3, :3], axis=0)
        except VolumeError as error:
            left_out.append(f"{path}: {error}")
            continue
        if len(image.shape) < 3 or np.prod(image.shape[3:]) != 1:
            left_out.append(f"{path}: an array of {' × '.join(map(str, image.shape))} is not one volume")
        elif max(size) > COARSER * voxel_size:
            coarse.append(float(max(size)))
            left_out.append(f"{path}: voxels of {' × '.join(f'{v:g}' for v in size)} mm are no truth at data.voxel_size={voxel_size:g} mm")
        else:
            usable.append(path)
    if not usable:
        reasons = "\n  ".join(left_out) or f"no file ends in {', '.join(SUFFIXES)}"
        way_out = f"; the finest would serve with data.voxel_size={np.ceil(min(coarse) * 10 - 1e-3) / 10:g}" if coarse else ""
        as_what = f"can serve as a truth at data.voxel_size={voxel_size:g} mm" if np.isfinite(voxel_size) else f"can be used for {key}"
        raise VolumeError(f"{folder}: no volume {as_what}{way_out}:\n  {reasons}")
    return usable, left_out


def split_by_subject(paths: Sequence[Path], root: Path, split: Split, seed: int = 0) -> list[Path]:
    """The `paths` of one split, exactly 8:1:1 by person, in their order: nobody is in two. Few people all go to the train split.

    Who is who `jaxsr.data.people` says, of paths below `root`: what lies above it says nothing, even if it is called sub-…
    """
    people = {path: person_of(path.relative_to(root)) for path in paths}
    splits = assign_splits(people.values(), seed, stable=False)
    return [path for path in paths if splits[people[path]] == split]


def stable_hash(text: str) -> int:
    """31 bits that do not change between runs, machines or Python versions."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
