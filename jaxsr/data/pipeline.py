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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NotRequired, Protocol, TypedDict, TypeVar, cast

import grain
import numpy as np

from jaxsr.config import ConfigError
from jaxsr.data.augmentation import AugmentConfig, Draw, draw, take
from jaxsr.data.pairs import beside, cut, planes, scale_of, told_quality
from jaxsr.data.prepared import PreparedSet
from jaxsr.data.subjects import MixedSubjects, Pair, Subjects
from jaxsr.volume.errors import VolumeError

ENDLESS = 2**40
FOREGROUND = -0.85  # of the window: brighter is tissue
LEAST_TISSUE = 0.1  # share of a crop
_ONE_CHANNEL = ("high", "low", "reference", "bias", "jacobian", "mask", "output", "mean_map")

Value = TypeVar("Value")


class Sample(TypedDict):
    """One training slice: maps as a `Batch` has them, without its first dimension, and where they come from.

    Attributes:
      high, low, reference, bias, jacobian: `[H, W, 1]` float32; of a set that networks made high and low only where they are needed.
      latents, low_latents, pooled, tokens: of an encoded set, float32; see `jaxsr.data.records`.
      paired: a number, where some slices have no pair: what this one's counts, 0 or 2.
      output, mean_map: `[H, W, 1]` float32, and spread, a number: of a distilled set.
      gradient: `[H, W, 3]` float32.
      beside: `[H, W, 2 k]` float32, of a stream with context k.
      scale, quality: `[3]` and `[5]` float32, and lacks, a number, of a stream that is to tell them.
      axes: a number, of a stream of cubes and stacks: across how many axes slices of the same voxels are among them, 3 or 1.
      labels: `[H, W]` uint8.
      mask: `[H, W, 1]` bool.
      origin: `[4]`: visit, subject, axis, slice; of a prepared set visit, shard, axis, record of the shard.
    """

    high: NotRequired[np.ndarray]
    low: NotRequired[np.ndarray]
    paired: NotRequired[np.float32]
    output: NotRequired[np.ndarray]
    mean_map: NotRequired[np.ndarray]
    spread: NotRequired[np.float32]
    latents: NotRequired[np.ndarray]
    low_latents: NotRequired[np.ndarray]
    pooled: NotRequired[np.ndarray]
    tokens: NotRequired[np.ndarray]
    reference: NotRequired[np.ndarray]
    bias: NotRequired[np.ndarray]
    gradient: NotRequired[np.ndarray]
    jacobian: NotRequired[np.ndarray]
    beside: NotRequired[np.ndarray]
    scale: NotRequired[np.ndarray]
    quality: NotRequired[np.ndarray]
    lacks: NotRequired[np.float32]
    axes: NotRequired[np.float32]
    labels: NotRequired[np.ndarray]
    mask: NotRequired[np.ndarray]
    origin: np.ndarray


class Stream(Protocol):
    """An endless stream of slices, random access: `stream[position]` is a pure function. As a context, it is closed once left."""

    def __enter__(self) -> "Stream": ...
    def __exit__(self, *_: object) -> None: ...
    def __getitem__(self, position: int) -> Sample: ...


class SliceStream:
    """The endless stream of training slices, random access; see the head of this file.

    Args:
      subjects: where pairs come from.
      crop: height and width of every slice in pixels; smaller slices are padded with background.
      draws: slices taken of a subject a visit.
      window: subjects that are mixed at a time.
      augment: how slices are varied; True: flipped at random.
      maps: names of the optional maps that samples have.
      context: slices of `low` on either side that samples have.
      scale, quality, lacks: whether samples have those of a batch.
      chosen: which of the subjects; None: all.
      note: told of the first subject, and of those that cannot be loaded, from another thread.

    As a context, it waits for no more subjects once left than for the one that is being loaded.
    """

    def __init__(
        self,
        subjects: Subjects,
        crop: tuple[int, int],
        *,
        draws: int,
        window: int = 4,
        augment: bool | AugmentConfig = True,
        maps: tuple[str, ...] = (),
        context: int = 0,
        scale: bool = False,
        quality: bool = False,
        lacks: bool = False,
        chosen: Sequence[int] | None = None,
        seed: int = 0,
        note: Callable[[str], None] = lambda text: None,
    ):
        if draws % window:
            raise ValueError(f"draws must be a multiple of window, got {draws} and {window}")
        self._subjects, self._crop, self._draws, self._window = subjects, crop, draws, window
        self._augment, self._maps, self._context, self._seed = augmentation_of(augment), maps, context, seed
        self._scale, self._quality, self._lacks = scale, quality, lacks
        self._chosen = range(len(subjects.ids)) if chosen is None else chosen
        self._cache = Cache(self._load, window + 2)
        self._note, self._told, self._began = note, set[int](), False

    def __enter__(self) -> "SliceStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._cache.close()

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> Sample:
        return self._draw(*self._turn(int(position)))

    def _turn(self, position: int) -> tuple[Pair, int, int, np.random.Generator]:
        """What is drawn from at `position`, its visit and its subject, and what all that is drawn there comes of."""
        block, within = divmod(position, self._draws)
        share = self._draws // self._window
        drawn = int(np.random.default_rng((self._seed, 1, block)).permutation(self._draws)[within])
        visit = max(block - drawn // share, 0)  # the first block has no predecessors
        self._cache.prepare(block + 1)
        subject, pair = self._cache.get(visit)
        return pair, visit, subject, np.random.default_rng((self._seed, 2, block, drawn))

    def subject(self, visit: int) -> int:
        """Whose turn it is at the `visit`-th place of the stream: a new random order each time all have been seen; in a mixture, drawn."""
        if isinstance(self._subjects, MixedSubjects):
            return self._subjects.turn(visit, self._seed)
        epoch, place = divmod(visit, len(self._chosen))
        return self._chosen[np.random.default_rng((self._seed, 0, epoch)).permutation(len(self._chosen))[place]]

    def _load(self, visit: int) -> tuple[int, Pair]:
        """Who came to the `visit`-th place, and their pair."""
        first, count = self._chosen.index(self.subject(visit)), len(self._chosen)
        if not self._began:  # rendering and compiling may take a minute, in which nothing else is heard
            self._began = True
            self._note(
                f"preparing {self._subjects.ids[self._chosen[first]]}, the first of {count} subjects; later ones are prepared meanwhile"
            )
        for subject in (self._chosen[(first + i) % count] for i in range(count)):
            try:
                pair = self._subjects.load(subject, visit)
                self._check(pair, self._subjects.ids[subject])
                if self._quality and pair.quality:
                    pair.quality()  # here, not where slices are waited for
                return subject, pair._replace(lacks=_lacking(pair)) if self._lacks else pair
            except (VolumeError, OSError) as error:
                reason = str(error)
                if subject not in self._told:
                    self._told.add(subject)
                    self._note(f"left out: {reason}")
        raise VolumeError(f"none of the {count} subjects can be loaded; the last: {reason}")

    def _check(self, pair: Pair, name: str) -> None:
        """Raises: ConfigError or VolumeError, where nothing can be cut out of the pair of `name`; of the latter the subject is left out."""
        check_maps(self._maps, tuple(pair.maps()), name)

    def _draw(self, pair: Pair, visit: int, subject: int, rng: np.random.Generator) -> Sample:
        across = planes(pair.grid)
        for _ in range(20):  # a crop without tissue teaches nothing; after so many, take what there is
            axis = across[int(rng.integers(len(across)))]
            low = np.moveaxis(pair.low, axis, 0)
            index = int(rng.integers(len(low)))
            corner = draw_corner(rng, low.shape[1:], self._crop)
            if has_tissue(low[index], corner, self._crop):
                break
        maps = cut(pair.maps(self._maps), axis, index)
        if self._context:
            maps["beside"] = beside(pair.low, axis, index, self._context)
        drawn = draw(self._augment, self._crop, rng)
        sample = make_sample(maps, corner, self._crop, drawn, np.array([visit, subject, axis, index]))
        if self._scale:
            assert pair.scanned is not None
            sample["scale"] = magnified(scale_of(pair.scanned, pair.grid, axis), drawn)
        if self._quality:
            assert pair.quality is not None
            sample["quality"] = told_quality(pair.quality(), axis)[[1, 0, 2, 3, 4] if drawn.transposed else slice(None)]
        if self._lacks:
            sample["lacks"] = np.float32(pair.lacks)
        return sample


def _lacking(pair: Pair) -> float:
    """`Pair.lacks`; of a pair without tissue that of all of it."""
    head = pair.low > FOREGROUND
    missing = (pair.high - pair.low)[head if head.any() else ...]
    return float(np.sqrt(np.mean(np.square(missing), dtype=np.float64)))


def batches(stream: Stream, batch_size: int, *, start: int = 0, rows: np.ndarray | None = None, threads: int = 2) -> grain.DatasetIterator:
    """Of the global batches `start`, `start` + 1, … of `batch_size` slices each those at the places `rows` (None: all), in that order.

    What is at a place does not depend on `rows`: what processes read of a batch is, put together, what a single one would see.
    """
    share = _Share(stream, batch_size, start, np.arange(batch_size) if rows is None else rows)
    dataset = grain.MapDataset.source(share).batch(len(share.rows))
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)))


class _Share:
    """Some slices of every batch from `start` on, random access."""

    def __init__(self, stream: Stream, batch_size: int, start: int, rows: np.ndarray):
        self._stream, self._batch_size, self._start = stream, batch_size, start
        self.rows = rows

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> Sample:
        batch, within = divmod(int(position), len(self.rows))
        return self._stream[(self._start + batch) * self._batch_size + int(self.rows[within])]


def augmentation_of(augment: bool | AugmentConfig) -> AugmentConfig:
    return AugmentConfig(flip=augment) if isinstance(augment, bool) else augment


def check_maps(wanted: tuple[str, ...], found: tuple[str, ...], where: str) -> None:
    """ConfigError where `found` lacks one of the `wanted` maps."""
    if missing := [name for name in wanted if name not in found]:
        optional = [name for name in found if name not in ("high", "low")]
        made = " (prepare --with jacobian: slices of gradient do not tell it)" if "jacobian" in missing and "gradient" in found else ""
        raise ConfigError(
            f"data.maps wants {', '.join(missing)}, which {where} has not: it has {', '.join(optional) or 'none of the optional maps'}; "
            f"leave out of data.maps what is not there, or take a set that has it{made}"
        )


def draw_corner(rng: np.random.Generator, shape: tuple[int, ...], crop: tuple[int, int]) -> tuple[int, int]:
    """The first pixel of a crop at random inside a slice of `shape`; where the slice is smaller, it is in the middle of the crop."""
    starts = [int(rng.integers(max(side - want, 0) + 1)) for side, want in zip(shape, crop, strict=True)]
    row, column = (start - max(want - side, 0) // 2 for start, side, want in zip(starts, shape, crop, strict=True))
    return row, column


def has_tissue(low: np.ndarray, corner: tuple[int, int], crop: tuple[int, int]) -> bool:
    """Whether enough of this crop of the slice is not background to learn from."""
    region = low[tuple(slice(max(at, 0), at + side) for at, side in zip(corner, crop, strict=True))]
    return bool(np.mean(region > FOREGROUND) > LEAST_TISSUE)


def make_sample(maps: dict[str, np.ndarray], corner: tuple[int, int], crop: tuple[int, int], drawn: Draw, origin: np.ndarray) -> Sample:
    """A crop of one slice's maps, augmented, as a `Batch` has it. Raises: as `shaped`."""
    return shaped(take(maps, corner, crop, drawn), origin)


def magnified(scale: np.ndarray, drawn: Draw) -> np.ndarray:
    """The scale of a slice that is varied as `drawn`: pixels of one twice as large are half as far from those of the scan."""
    factor = 1.0 if drawn.linear is None else abs(np.linalg.det(drawn.linear)) ** -0.5
    row, column, through = scale * np.array([factor, factor, 1.0], np.float32)
    return np.maximum([column, row, through] if drawn.transposed else [row, column, through], 1).astype(np.float32)


def shaped(maps: dict[str, np.ndarray], origin: np.ndarray) -> Sample:
    """One slice's maps, cropped, as a `Batch` has them.

    Raises:
      ConfigError: where there are labels that are no uint8.
    """
    taken = dict(maps)
    if (labels := taken.get("labels")) is not None and labels.dtype != np.uint8:
        if labels.min() < 0 or labels.max() > 255:
            raise ConfigError(
                f"data.maps: labels from {labels.min()} to {labels.max()} were found, and training takes 0 to 255: "
                "merge some of them, or leave labels out"
            )
        taken["labels"] = labels.astype(np.uint8)
    channels = {name: x[..., None] if name in _ONE_CHANNEL else x for name, x in taken.items()}
    return cast(Sample, {**channels, "origin": origin})


class Cache(Generic[Value]):
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


def sample_ids(origin: np.ndarray, subjects: Subjects | PreparedSet) -> Iterator[str]:
    """Readable names of a batch's slices, from its `origin` `[B, 4]`."""
    unit = "record" if isinstance(subjects, PreparedSet) else "slice"
    for visit, subject, axis, index in np.asarray(origin):
        name = subjects.ids[subject] if subject < len(subjects.ids) else f"volume {subject - len(subjects.ids) + 1} of data.unpaired"
        yield f"{name} (visit {visit}) {('sagittal', 'coronal', 'axial')[axis]} {unit} {index}"
