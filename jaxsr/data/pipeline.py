"""The input pipeline: batch k is a pure function of (config, k).

Slices come from volumes that are costly to make (rendered, or read and resampled), so few are held at a time. Subjects enter a *sliding
window* one by one: block b of the stream, `draws` slices long, takes equal shares at random from subjects b, b − 1, … b − window + 1.
The next subject is prepared while the current block is read; memory holds window + 2 subjects whatever the set's size, and any position
can be computed without those before it, which is what makes resuming exact and independent of the number of hosts.

A subject that cannot be loaded gives its turn to the next one in the set's own order, each time it comes, and is told once: the stream
stays a function of (config, position, files) whatever is damaged, and one bad file does not end a run of days.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypedDict, TypeVar

import grain
import numpy as np

from jaxsr.data.subjects import Pair, Subjects
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.slices import take_slices

ENDLESS = 2**40
FOREGROUND = -0.85  # of the window: brighter is tissue
LEAST_TISSUE = 0.1  # share of a crop

Value = TypeVar("Value")


class Sample(TypedDict):
    """One training slice: `high` and `low` `[H, W, 1]` float32, and where it comes from (`[4]`: visit, subject, axis, slice)."""

    high: np.ndarray
    low: np.ndarray
    origin: np.ndarray


class SliceStream:
    """The endless stream of training slices, random access; see the head of this file.

    Args:
      subjects: where pairs come from.
      crop: height and width of every slice in pixels; smaller slices are padded with background.
      draws: slices taken of a subject a visit.
      window: subjects that are mixed at a time.
      augment: flip slices at random.
      note: told of subjects that cannot be loaded, from another thread.

    As a context, it waits for no more subjects once left than for the one that is being loaded.
    """

    def __init__(
        self,
        subjects: Subjects,
        crop: tuple[int, int],
        *,
        draws: int,
        window: int = 4,
        augment: bool = True,
        seed: int = 0,
        note: Callable[[str], None] = lambda text: None,
    ):
        if draws % window:
            raise ValueError(f"draws must be a multiple of window, got {draws} and {window}")
        self._subjects, self._crop, self._draws, self._window = subjects, crop, draws, window
        self._augment, self._seed = augment, seed
        self._cache = _Cache(self._load, window + 2)
        self._note, self._told = note, set[int]()

    def __enter__(self) -> "SliceStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._cache.close()

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> Sample:
        block, within = divmod(int(position), self._draws)
        share = self._draws // self._window
        drawn = int(np.random.default_rng((self._seed, 1, block)).permutation(self._draws)[within])
        visit = max(block - drawn // share, 0)  # the first block has no predecessors
        self._cache.prepare(block + 1)
        subject, pair = self._cache.get(visit)
        rng = np.random.default_rng((self._seed, 2, block, drawn))
        return self._draw(pair, visit, subject, rng)

    def subject(self, visit: int) -> int:
        """Whose turn it is at the `visit`-th place of the stream: a new random order each time all have been seen."""
        epoch, place = divmod(visit, len(self._subjects.ids))
        return int(np.random.default_rng((self._seed, 0, epoch)).permutation(len(self._subjects.ids))[place])

    def _load(self, visit: int) -> tuple[int, Pair]:
        """Who came to the `visit`-th place, and their pair."""
        first, count = self.subject(visit), len(self._subjects.ids)
        for subject in ((first + i) % count for i in range(count)):
            try:
                return subject, self._subjects.load(subject, visit)
            except (VolumeError, OSError) as error:
                reason = str(error)
                if subject not in self._told:
                    self._told.add(subject)
                    self._note(f"left out: {reason}")
        raise VolumeError(f"none of the {count} subjects can be loaded; the last: {reason}")

    def _draw(self, pair: Pair, visit: int, subject: int, rng: np.random.Generator) -> Sample:
        for _ in range(20):  # a crop without tissue teaches nothing; after so many, take what there is
            axis = int(rng.integers(3))
            low, high = take_slices(pair.low, axis), take_slices(pair.high, axis)
            index = int(rng.integers(len(low)))
            region = tuple(_crop_range(rng, side, crop) for side, crop in zip(low.shape[1:], self._crop, strict=True))
            if np.mean(low[index][region] > FOREGROUND) > LEAST_TISSUE:
                break
        flips = tuple(slice(None, None, -1) if self._augment and rng.random() < 0.5 else slice(None) for _ in range(2))
        low, high = (_pad_to(x[index][region], self._crop)[flips][..., None] for x in (low, high))
        return Sample(high=np.ascontiguousarray(high), low=np.ascontiguousarray(low), origin=np.array([visit, subject, axis, index]))


def batches(
    stream: SliceStream, batch_size: int, *, start: int = 0, process: int = 0, processes: int = 1, threads: int = 2
) -> grain.DatasetIterator:
    """This process's shares of the global batches `start`, `start` + 1, … of `batch_size` slices each.

    The shares of all processes, one after the other, are the batch that a single process would see.

    Raises:
      ValueError: where the batch does not divide over the processes.
    """
    if batch_size % processes:
        raise ValueError(f"a batch of {batch_size} slices does not divide over {processes} processes")
    share = _Share(stream, batch_size, start, process, processes)
    dataset = grain.MapDataset.source(share).batch(batch_size // processes)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)))


class _Share:
    """One process's slices of every batch from `start` on, random access."""

    def __init__(self, stream: SliceStream, batch_size: int, start: int, process: int, processes: int):
        self._stream, self._batch_size, self._start = stream, batch_size, start
        self._mine = batch_size // processes
        self._offset = process * self._mine

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> Sample:
        batch, within = divmod(int(position), self._mine)
        return self._stream[(self._start + batch) * self._batch_size + self._offset + within]


def _crop_range(rng: np.random.Generator, side: int, crop: int) -> slice:
    start = int(rng.integers(max(side - crop, 0) + 1))
    return slice(start, min(start + crop, side))


def _pad_to(x: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    missing = [(want - have) for want, have in zip(shape, x.shape, strict=True)]
    if not any(missing):
        return x
    return np.pad(x, [(m // 2, m - m // 2) for m in missing], constant_values=-1.0)


class _Cache(Generic[Value]):
    """The last `size` results of `load(key)`, each computed once, however many threads ask, one at a time in a thread of its own."""

    def __init__(self, load: Callable[[int], Value], size: int):
        self._load, self._size = load, size
        self._lock = threading.Lock()
        self._held: OrderedDict[int, Future[Value]] = OrderedDict()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="subjects")

    def prepare(self, key: int) -> None:
        self._future(key)

    def get(self, key: int) -> Value:
        return self._future(key).result()

    def close(self) -> None:
        """Whoever waits for what is not being computed yet waits no longer."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _future(self, key: int) -> "Future[Value]":
        with self._lock:
            if key not in self._held:
                self._held[key] = self._worker.submit(self._load, key)
                while len(self._held) > self._size:
                    self._held.popitem(last=False)
            else:
                self._held.move_to_end(key)
            return self._held[key]


def sample_ids(origin: np.ndarray, subjects: Subjects) -> Iterator[str]:
    """Readable names of a batch's slices, from its `origin` `[B, 4]`."""
    for visit, subject, axis, index in np.asarray(origin):
        yield f"{subjects.ids[subject]} (visit {visit}) {('sagittal', 'coronal', 'axial')[axis]} slice {index}"
