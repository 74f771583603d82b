"""A prepared set, or one split of it, random access: record i, whatever shard it is in."""

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from jaxsr.data.records import MANIFEST, decode, read_manifest, shards_of
from jaxsr.data.splits import Split
from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError

_WAY_OUT = "run the same `jaxsr prepare` again, which makes anew what is missing or damaged, or copy the set again"


class PreparedSet:
    """The records of one split (None: all) of the set that `path`, a manifest or its folder, names.

    Every shard is opened once at the start, which takes less than a millisecond, and may be opened again later: readers are kept as long
    as the process may have so many files open.

    Attributes:
      manifest: what there is.
      sha256: of the manifest, which has those of the shards: of the whole set.
      ids: names of the shards, below the folder.

    Raises:
      VolumeError: where there is no such set, nothing in this split, or a shard is missing or has not the records that the manifest says.
    """

    def __init__(self, path: Path, split: Split | None):
        file = path / MANIFEST if path.is_dir() else path
        self.manifest, self.folder = read_manifest(file), file.parent
        self.sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        self.shards = shards_of(self.manifest, split) if split else self.manifest.shards
        self.ids: Sequence[str] = [shard.file for shard in self.shards]
        self._ends = np.cumsum([shard.records for shard in self.shards])
        if not len(self):
            where = f"its {split} split" if split else "any split"
            raise VolumeError(f"{shown(file)} has no slices in {where}: prepare a set of more people")
        self._lock, self._readers = threading.Lock(), OrderedDict[int, Any]()
        self._kept = max(_open_files() // 2, 1)
        faults = [fault for shard in range(len(self.shards)) if (fault := self._fault(shard))]
        if faults:
            more = f", and {len(faults) - 1} more of its shards" if len(faults) > 1 else ""
            raise VolumeError(f"{faults[0]}{more}: {_WAY_OUT}")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def place(self, record: int) -> tuple[int, int]:
        """Which shard, and which record of it."""
        shard = int(np.searchsorted(self._ends, record, "right"))
        return shard, record - self.first(shard)

    def first(self, shard: int) -> int:
        """The first record of a shard."""
        return int(self._ends[shard]) - self.shards[shard].records

    def records_of(self, shards: Sequence[int]) -> np.ndarray:
        """All records of those shards, `[n]`."""
        return np.concatenate([np.arange(self.first(shard), self._ends[shard]) for shard in shards])

    def origin(self, record: int) -> np.ndarray:
        """`[4]`: visit, shard, axis, record of the shard."""
        shard, number = self.place(record)
        axis = int(np.searchsorted(np.cumsum(self.shards[shard].slices), number, "right"))
        return np.array([self.shards[shard].visit, shard, axis, number])

    def read(self, record: int) -> dict[str, np.ndarray]:
        """The maps of a record, as stored.

        Raises:
          VolumeError: where it cannot be read.
        """
        shard, number = self.place(record)
        try:
            maps = decode(self._reader(shard).read([number])[0])
        except (RuntimeError, IndexError, VolumeError) as error:  # what array_record raises for whatever is wrong
            raise VolumeError(f"{shown(self.folder / self.ids[shard])}: record {number} cannot be read ({error})") from error
        always = () if self.manifest.precomputed else ("high", "low")
        if missing := {*always, *self.manifest.maps} - maps.keys():
            raise VolumeError(f"{shown(self.folder / self.ids[shard])}: record {number} has no map {', '.join(sorted(missing))}")
        return maps

    def _fault(self, shard: int) -> str:
        """What is wrong with a shard, as far as opening it tells."""
        file, expected = self.folder / self.shards[shard].file, self.shards[shard].records
        if not file.is_file():
            return f"{shown(file)} is missing"
        found = self._reader(shard).num_records()
        return "" if found == expected else f"{shown(file)} has {found} whole records, the manifest says {expected}"

    def _reader(self, shard: int) -> Any:
        """Whoever still reads from one that is dropped here keeps it open until done."""
        with self._lock:
            if shard not in self._readers:
                path = str(self.folder / self.shards[shard].file)
                self._readers[shard] = array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")
                while len(self._readers) > self._kept:
                    self._readers.popitem(last=False)
            self._readers.move_to_end(shard)
            return self._readers[shard]


def _open_files() -> int:
    """How many files this process may have open, after it has asked for as many as it can get."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):  # macOS does not give what it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        return soft if soft != resource.RLIM_INFINITY else 2**16
    return 2**10
