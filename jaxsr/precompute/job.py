"""A set made of a prepared set by networks, once, so that training need not run them: `jaxsr prepare --encode` and `jaxsr distill`.

What networks make of a flipped slice is not what they make of the slice, flipped: place, flip and whatever else varies a slice are drawn
here, and each slice is taken `copies` times, each copy with draws of its own from (seed, scan, record, copy). Each scan is one shard and
written whole; what is done already, of the same shard with the same settings, is left as it is. Slices go through the networks in batches
of one shape, of one scan each, the last filled up: a scan's bytes do not depend on what else was to be done. Reading, computing and writing
overlap. Several processes take scans of their own, and whoever finds all done writes the manifest.
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
from jaxsr.methods.precision import rounded_ahead
from jaxsr.precompute.plan import Plan, Task, read_part, settings_text
from jaxsr.prepare.job import BEFORE, sweep
from jaxsr.prepare.part import Part, made_by
from jaxsr.runtime.distributed import Place
from jaxsr.runtime.mesh import batch_sharding, make_mesh, replicated
from jaxsr.volume.errors import VolumeError

Advance = Callable[..., None]
Note = Callable[[str], None]


def make_set(
    plan: Plan,
    *,
    batch_size: int = 16,
    place: Place = Place(0, 1),
    advance: Advance = lambda *_, **__: None,
    note: Note = lambda text: None,
) -> Manifest | None:
    """Makes the scans that are missing or damaged, then writes the manifest; None where other processes have not made theirs yet.

    Args:
      batch_size: slices at a time; made a multiple of the number of devices.
      place: of this process among others that make the same set in the same folder; each takes every so many-th scan.
      advance: told how many slices are done, and of which scan.
      note: told of scans of which nothing can be made: they cannot be read, or what the networks make of them does not fit the dtype.

    Raises:
      VolumeError: where nothing can be made of any scan.
      FileError: where nothing can be written.
    """
    out = plan.out
    write_text(out / "settings.json", settings_text(plan.settings))
    if (out / MANIFEST).exists() and place.process == 0:  # what it says of scans that are made anew would not be true
        os.replace(out / MANIFEST, out / BEFORE)
    mine = plan.tasks[place.process :: place.processes]
    parts = {task.name: part for task in mine if (part := _whole_part(task))}
    if done := sum(part.shard.records for part in parts.values()):
        advance(done, "done before")
    rejected, made = list[Rejected](), None
    for task in mine:
        if task.name in parts:
            continue
        made = made or _Made(plan, batch_size)
        try:
            parts[task.name] = _make_part(plan, task, made, functools.partial(_advance, advance, done, task.name))
        except VolumeError as error:  # one bad scan does not end a batch
            why = str(error).replace(f"{plan.records.folder}{os.sep}", "")  # the manifest does not say where the set lay
            rejected.append(Rejected(what=task.name, why=why))
            note(f"rejected: {why}")
        done += plan.count(task)
    others = [task for task in plan.tasks if task not in mine]
    parts |= {task.name: part for task in others if (part := read_part(task))}
    if place.processes > 1 and len(parts) < len(plan.tasks):
        return None
    if not parts:
        raise VolumeError(f"nothing could be made of the {len(plan.tasks)} scans; the last: {rejected[-1].why}")
    return _finish(plan, parts, rejected)


def _finish(plan: Plan, parts: dict[str, Part], rejected: list[Rejected]) -> Manifest:
    out, source = plan.out, plan.records.manifest
    splits = {task.name: plan.records.shards[task.shard].split for task in plan.tasks}
    facts = plan.facts()
    kind = next(name for name in ("encoding", "distillation") if name in facts)
    manifest = Manifest(
        made_by=made_by(),
        voxel_size=source.voxel_size,
        dtype=plan.settings.dtype,  # type: ignore[arg-type]
        settings=json.dumps({**json.loads(source.settings), kind: json.loads(settings_text(plan.settings))}, indent=1) + "\n",
        shards=tuple(parts[name].shard.model_copy(update={"split": splits[name]}) for name in sorted(parts)),
        rejected=(*source.rejected, *rejected),
        **facts,
    )
    sweep(out, set(parts))
    write_manifest(out, manifest)  # last: with it the set is complete
    (out / BEFORE).unlink(missing_ok=True)
    return manifest


class _Crops:
    """Position → a crop of one scan, varied, as networks see it, and where it is from; the last is repeated up to whole batches."""

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
        scan = stable_hash(self._records.shards[shard].subject)
        rng = np.random.default_rng((settings.seed, scan, number, copy))
        corner, drawn = draw_crop(maps["low"], (settings.crop, settings.crop), settings.augment, rng)
        crops = take(maps, corner, (settings.crop, settings.crop), drawn)
        return {**crops, "place": np.array([scan % 2**31, number, copy], np.uint32)}


class _Made:
    """What the networks make of a scan, batch by batch, by one program for all scans."""

    def __init__(self, plan: Plan, batch_size: int):
        mesh = make_mesh(devices=jax.local_devices())
        self._plan, self._by_batch = plan, batch_sharding(mesh)
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        root = jax.random.key(plan.settings.seed)

        def make(params: Any, maps: dict[str, jax.Array], places: jax.Array) -> dict[str, jax.Array]:
            keys = jax.vmap(lambda place: functools.reduce(jax.random.fold_in, place, root))(places)
            return plan.maker.make(params, maps, keys, plan.settings)

        self._program, params = jax.jit(make), plan.maker.params
        if plan.settings.precision == "bf16":
            params = rounded_ahead(make, params, plan.inputs, jax.ShapeDtypeStruct((1, 3), np.uint32))
        self._params = jax.device_put(params, replicated(mesh))

    def batches(self, task: Task) -> Generator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
        """Crops, and what is made of them: the device is at the next batch while this one is written, and threads read those to come."""
        crops = grain.MapDataset.source(_Crops(self._plan, task, self._batch_size)).batch(self._batch_size)
        options = grain.ReadOptions(num_threads=min(4, os.cpu_count() or 1), prefetch_buffer_size=4)
        ahead: deque[tuple[dict[str, np.ndarray], dict[str, Any]]] = deque()
        with contextlib.closing(iter(crops.to_iter_dataset(options))) as batches:
            for batch in batches:
                maps = {name: batch[name] if batch[name].ndim == 4 else batch[name][..., None] for name in self._plan.maker.reads}
                images, places = jax.device_put((maps, batch["place"]), self._by_batch)
                ahead.append((batch, self._program(self._params, images, places)))  # returns at once
                if len(ahead) > 1:
                    yield ahead.popleft()
            yield from ahead


def _advance(advance: Advance, before: int, name: str, count: int) -> None:
    advance(before + count, name)


def _make_part(plan: Plan, task: Task, made: _Made, advance: Callable[[int], None]) -> Part:
    """Makes one scan and writes its part, which appears whole or not at all."""
    source, copies, found = plan.records.shards[task.shard], plan.settings.copies, {}

    def records() -> Iterator[bytes]:
        left = plan.count(task)
        with contextlib.closing(made.batches(task)) as batches:
            for crops, arrays in batches:
                rows = {name: crops[name] for name in plan.kept} | {name: np.asarray(x) for name, x in arrays.items()}
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
    """As it is stored; float16 goes up to 65504, which nothing that has learnt anything reaches. Numbers, one a slice, stay as they are."""
    if x.dtype.kind != "f":
        return x
    stored = plan.settings.dtype if x.ndim > 1 else "float32"
    with np.errstate(over="ignore"):
        cast = x.astype(stored)
    if not np.isfinite(cast).all():
        if np.isfinite(x).all():
            why, way_out = f"reach {np.abs(x).max():g}, more than {stored} holds", "take --dtype float32"
        else:
            why, way_out = "are not finite", "train the network longer or at a lower rate, or look at this scan"
        raise VolumeError(f"{shard.subject}: {name.replace('_', ' ')} of a slice {why}: {way_out}")
    return cast


def _whole_part(task: Task) -> Part | None:
    """`read_part`, if its shard is what was written."""
    return part if (part := read_part(task)) and file_sha256(task.file) == part.shard.sha256 else None
