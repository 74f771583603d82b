"""`jaxsr prepare --encode`: a prepared set, encoded once, so that a teacher's denoiser trains without its encoders.

A latent of a flipped slice is not a flipped latent: place, flip and whatever else varies a slice are drawn here, and each slice is encoded
`copies` times, each copy with draws of its own from (seed, scan, record, copy). Each scan is one shard and written whole; what is done
already, of the same shard with the same settings, is left as it is. Slices go through the networks in batches of one shape, of one scan
each, the last filled up: a scan's bytes do not depend on what else was to be done. Reading, computing and writing overlap.
"""

import contextlib
import functools
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from jaxsr.data.augmentation import take
from jaxsr.data.record_stream import draw_crop
from jaxsr.data.records import MANIFEST, Manifest, Rejected, Shard, encode, file_sha256, record_writer, write_manifest
from jaxsr.data.subjects import stable_hash
from jaxsr.files import write_text, write_together
from jaxsr.precompute.plan import Plan, Task, encoded_names, encoding_of, read_part, settings_text, stored_maps
from jaxsr.prepare.job import BEFORE, sweep
from jaxsr.prepare.part import Part, made_by
from jaxsr.runtime.mesh import batch_sharding, make_mesh, replicated
from jaxsr.volume.errors import VolumeError

Advance = Callable[..., None]
Note = Callable[[str], None]


def encode_set(plan: Plan, *, batch_size: int = 16, advance: Advance = lambda *_, **__: None, note: Note = lambda text: None) -> Manifest:
    """Encodes the scans that are missing or damaged, then writes the manifest.

    Args:
      batch_size: slices at a time; made a multiple of the number of devices.
      advance: told how many slices are done, and of which scan.
      note: told of scans that cannot be encoded: they cannot be read, or what the networks make of them does not fit the dtype.

    Raises:
      VolumeError: where not one scan can be encoded.
      FileError: where nothing can be written.
    """
    out, source = plan.out, plan.records.manifest
    write_text(out / "settings.json", settings_text(plan.settings))
    if (out / MANIFEST).exists():  # what it says of scans that are made anew would not be true
        os.replace(out / MANIFEST, out / BEFORE)
    parts = {task.name: part for task in plan.tasks if (part := _whole_part(task))}
    if done := sum(part.shard.records for part in parts.values()):
        advance(done, "done before")
    rejected, encoded = list(source.rejected), None
    for task in plan.tasks:
        if task.name in parts:
            continue
        encoded = encoded or _Encoded(plan, batch_size)
        try:
            parts[task.name] = _make_part(plan, task, encoded, functools.partial(_advance, advance, done, task.name))
        except VolumeError as error:  # one bad scan does not end a batch
            why = str(error).replace(f"{plan.records.folder}{os.sep}", "")  # the manifest does not say where the set lay
            rejected.append(Rejected(what=task.name, why=why))
            note(f"rejected: {why}")
        done += plan.count(task)
    if not parts:
        raise VolumeError(f"none of the {len(plan.tasks)} scans could be encoded; the last: {rejected[-1].why}")
    splits = {task.name: plan.records.shards[task.shard].split for task in plan.tasks}
    manifest = Manifest(
        made_by=made_by(),
        voxel_size=source.voxel_size,
        dtype=plan.settings.dtype,
        maps=(*encoded_names(plan.settings), *stored_maps(plan)),
        settings=json.dumps({**json.loads(source.settings), "encoding": json.loads(settings_text(plan.settings))}, indent=1) + "\n",
        shards=tuple(parts[name].shard.model_copy(update={"split": splits[name]}) for name in sorted(parts)),
        rejected=tuple(rejected),
        encoding=encoding_of(plan),
    )
    sweep(out, set(parts))
    write_manifest(out, manifest)  # last: with it the set is complete
    (out / BEFORE).unlink(missing_ok=True)
    return manifest


class _Crops:
    """Position → a crop of one scan, varied, as networks see it; the last is repeated up to whole batches."""

    def __init__(self, plan: Plan, task: Task, batch_size: int):
        self._records, self._settings, self._task = plan.records, plan.settings, task
        self._count, self._batch_size = plan.count(task), batch_size

    def __len__(self) -> int:
        return -(-self._count // self._batch_size) * self._batch_size

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        settings, shard = self._settings, self._task.shard
        number, copy = divmod(min(int(position), self._count - 1), settings.copies)
        maps = self._records.read(self._records.first(shard) + number)
        maps = {name: maps[name] for name in dict.fromkeys(("high", "low", *self._records.manifest.maps))}
        rng = np.random.default_rng((settings.seed, stable_hash(self._records.shards[shard].subject), number, copy))
        corner, drawn = draw_crop(maps["low"], (settings.crop, settings.crop), settings.augment, rng)
        return take(maps, corner, (settings.crop, settings.crop), drawn)


class _Encoded:
    """What the networks make of a scan, batch by batch, by one program for all scans."""

    def __init__(self, plan: Plan, batch_size: int):
        mesh = make_mesh(devices=jax.local_devices())
        self._plan, self._by_batch = plan, batch_sharding(mesh)
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._params = jax.device_put(plan.encoders.params, replicated(mesh))
        self._program = jax.jit(functools.partial(plan.encoders.encode, tokens=plan.settings.tokens == "patches"))

    def batches(self, task: Task) -> Generator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
        """Crops, and what is made of them: the device is at the next batch while this one is written, and threads read those to come."""
        crops = grain.MapDataset.source(_Crops(self._plan, task, self._batch_size)).batch(self._batch_size)
        options = grain.ReadOptions(num_threads=min(4, os.cpu_count() or 1), prefetch_buffer_size=4)
        ahead: deque[tuple[dict[str, np.ndarray], dict[str, Any]]] = deque()
        with contextlib.closing(iter(crops.to_iter_dataset(options))) as batches:
            for batch in batches:
                images = jax.device_put([batch[name][..., None] for name in ("high", "low")], self._by_batch)
                ahead.append((batch, self._program(self._params, *images)))  # returns at once
                if len(ahead) > 1:
                    yield ahead.popleft()
            yield from ahead


def _advance(advance: Advance, before: int, name: str, count: int) -> None:
    advance(before + count, name)


def _make_part(plan: Plan, task: Task, encoded: _Encoded, advance: Callable[[int], None]) -> Part:
    """Encodes one scan and writes its part, which appears whole or not at all."""
    source, copies, found = plan.records.shards[task.shard], plan.settings.copies, {}

    def records() -> Iterator[bytes]:
        left = plan.count(task)
        with contextlib.closing(encoded.batches(task)) as batches:
            for crops, made in batches:
                rows = {name: crops[name] for name in stored_maps(plan)} | {name: np.asarray(x) for name, x in made.items()}
                rows = {name: _cast(name, x, plan, source) for name, x in rows.items()}
                taken = min(left, len(crops["low"]))
                for i in range(taken):
                    yield encode({name: x[i] for name, x in rows.items()})
                left -= taken
                advance(plan.count(task) - left)

    def write_shard(path: Path) -> None:
        record_writer(records())(path)
        found["sha256"] = file_sha256(path)

    def part() -> Part:
        sagittal, coronal, axial = (copies * count for count in source.slices)
        about = {"file": task.file.relative_to(task.out).as_posix(), "sha256": found["sha256"], "split": "train"}
        counts = {"records": plan.count(task), "slices": (sagittal, coronal, axial)}
        return Part(digest=task.digest, shard=source.model_copy(update=about | counts))

    entry = lambda path: path.write_text(part().model_dump_json(indent=1) + "\n", encoding="utf-8")  # noqa: E731
    write_together({task.file: write_shard, task.entry: entry})
    return part()


def _cast(name: str, x: np.ndarray, plan: Plan, shard: Shard) -> np.ndarray:
    """As it is stored; float16 goes up to 65504, which no autoencoder that has learnt anything reaches."""
    if x.dtype.kind != "f":
        return x
    with np.errstate(over="ignore"):
        cast = x.astype(plan.settings.dtype)
    if not np.isfinite(cast).all():
        if np.isfinite(x).all():
            why, way_out = f"reach {np.abs(x).max():g}, more than {plan.settings.dtype} holds", "encode with --dtype float32"
        else:
            why, way_out = "are not finite", "train the network longer or at a lower rate, or look at this scan"
        raise VolumeError(f"{shard.subject}: {name.replace('_', ' ')} of a slice {why}: {way_out}")
    return cast


def _whole_part(task: Task) -> Part | None:
    """`_read_part`, if its shard is what was written."""
    return part if (part := read_part(task)) and file_sha256(task.file) == part.shard.sha256 else None
