"""The endless stream of slices of a prepared set: position → epoch and place in it → a record, in an order drawn for each epoch.

The order is a permutation that is computed place by place (grain's index shuffle), so a set of any size takes no memory for it. Like all
streams, this is a pure function of (config, position); a record that cannot be read gives its place to the next one of the set.
"""

import threading
from collections.abc import Callable
from typing import cast

import grain
import numpy as np

from jaxsr.data.augmentation import AugmentConfig, Draw, draw
from jaxsr.data.pipeline import ENDLESS, Sample, augmentation_of, check_maps, draw_corner, has_tissue, make_sample, shaped
from jaxsr.data.prepared import PreparedSet
from jaxsr.volume.errors import VolumeError


class RecordStream:
    """The records of `records`, each once an epoch, random access; see the head of this file.

    Args:
      crop: height and width of every slice in pixels; smaller slices are padded with background.
      names: of the maps that samples have.
      augment: how slices are varied; True: flipped at random.
      chosen: which of the records; None: all.
      note: told, once a shard, of records that cannot be read, from another thread.

    Raises:
      ConfigError: where the set lacks one of `names`.
    """

    def __init__(
        self,
        records: PreparedSet,
        crop: tuple[int, int],
        names: tuple[str, ...] = ("high", "low"),
        *,
        augment: bool | AugmentConfig = True,
        chosen: np.ndarray | None = None,
        seed: int = 0,
        note: Callable[[str], None] = lambda text: None,
    ):
        check_maps(tuple(name for name in names if name not in ("high", "low")), records.manifest.maps, str(records.folder))
        self._records, self._crop, self._names, self._seed = records, crop, names, seed
        self._augment = augmentation_of(augment)
        shuffle_seed = int(np.random.SeedSequence((seed, 0)).generate_state(1)[0])
        self._chosen = np.arange(len(records)) if chosen is None else chosen
        self._order = grain.MapDataset.range(len(self._chosen)).shuffle(seed=shuffle_seed)
        self._note, self._told, self._lock = note, set[int](), threading.Lock()

    def __enter__(self) -> "RecordStream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __len__(self) -> int:
        return ENDLESS

    def record(self, position: int) -> int:
        """Whose place it is: each record has one in every epoch, of as many positions as there are records."""
        return int(self._chosen[self._order[position]])

    def __getitem__(self, position: int) -> Sample:
        record, maps = self._read(int(position))
        rng = np.random.default_rng((self._seed, 1, int(position)))
        corner, drawn = draw_crop(maps["low"], self._crop, self._augment, rng)
        # Numbers, which a distilled set has, are of the slice wherever it is cropped.
        numbers = {name: np.float32(maps[name]) for name in self._names if maps[name].ndim == 0}
        maps = {name: maps[name] for name in self._names if name not in numbers}
        return cast(Sample, {**make_sample(maps, corner, self._crop, drawn, self._records.origin(record)), **numbers})

    def _read(self, position: int) -> tuple[int, dict[str, np.ndarray]]:
        first, count = int(self._order[position]), len(self._chosen)
        for record in (int(self._chosen[(first + i) % count]) for i in range(count)):
            try:
                return record, self._records.read(record)
            except VolumeError as error:
                reason = str(error)
                with self._lock:
                    first_of_shard = (shard := self._records.place(record)[0]) not in self._told
                    self._told.add(shard)
                if first_of_shard:
                    self._note(f"left out: {reason}; so will be, untold, others of this file that cannot be read")
        raise VolumeError(f"none of the {count} records can be read; the last: {reason}")


class EncodedStream(RecordStream):
    """The records of an encoded set in the order of a `RecordStream`, as they are: crops and flips were drawn when they were encoded.

    Args:
      names: of all that samples have; the set has them.
      chosen: as of a `RecordStream`.
    """

    def __init__(
        self,
        records: PreparedSet,
        names: tuple[str, ...],
        *,
        chosen: np.ndarray | None = None,
        seed: int = 0,
        note: Callable[[str], None] = lambda text: None,
    ):
        super().__init__(records, (0, 0), names, chosen=chosen, seed=seed, note=note)

    def __getitem__(self, position: int) -> Sample:
        record, maps = self._read(int(position))
        wanted = {name: maps[name] for name in self._names}
        taken = {name: x.astype(np.float32, copy=False) if x.dtype.kind == "f" else x for name, x in wanted.items()}
        return shaped(taken, self._records.origin(record))


def draw_crop(low: np.ndarray, crop: tuple[int, int], augment: AugmentConfig, rng: np.random.Generator) -> tuple[tuple[int, int], Draw]:
    """Where a crop of the slice `low` begins, and how it is varied."""
    for _ in range(20):  # as in a SliceStream
        corner = draw_corner(rng, low.shape, crop)
        if has_tissue(low, corner, crop):
            break
    return corner, draw(augment, crop, rng)
