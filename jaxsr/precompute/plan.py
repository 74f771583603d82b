"""What is to be made of a prepared set by networks, once, and how far it is: `prepare --encode` and `distill` differ in the maker only."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import pydantic

from jaxsr.config import ConfigError, Strict
from jaxsr.data.augmentation import AugmentConfig
from jaxsr.data.prepared import PreparedSet
from jaxsr.data.records import MANIFEST, SUFFIX, Manifest, Shard, read_manifest
from jaxsr.files import shown
from jaxsr.methods.condition import MAP_CHANNELS
from jaxsr.prepare.job import BEFORE, check_settings
from jaxsr.prepare.part import Part, made_by
from jaxsr.prepare.people import check_nobody_moves


class MakerSettings(Strict):
    """Attributes:
    prepared: SHA-256 of the settings that the set was prepared with.
    splits: scans of which something is made.
    crop: side of the squares in pixels; smaller slices are padded with background.
    copies: of each slice.
    augment: how slices are varied.
    keep: maps of the set that records have too.
    dtype: of what records have.
    precision: of the computation.
    seed: of crops, augmentation, and of what the networks draw.
    """

    prepared: str
    splits: tuple[str, ...] = ("train", "validation", "test")
    crop: int = pydantic.Field(256, ge=8)
    copies: int = pydantic.Field(1, ge=1, le=1000)
    augment: AugmentConfig = AugmentConfig()
    keep: tuple[str, ...] = ()
    dtype: str = pydantic.Field("float16", pattern="^float(16|32)$")
    precision: str = pydantic.Field("f32", pattern="^(f32|bf16)$")
    seed: int = pydantic.Field(0, ge=0)


class Maker(Protocol):
    """Networks that make something of crops.

    Attributes:
      params: of all of them, laid on every device.
      multiple: crops' sides are multiples of it.
      reads: maps of a set that the networks are shown.
      crop: side of the squares that they were trained on, where they say so.
    """

    @property
    def params(self) -> Any: ...

    @property
    def multiple(self) -> int: ...

    @property
    def reads(self) -> tuple[str, ...]: ...

    @property
    def crop(self) -> int | None: ...

    def make(self, params: Any, maps: dict[str, jax.Array], keys: jax.Array, settings: Any) -> dict[str, jax.Array]:
        """What a record has of each of `maps` `[B, H, W, C]`, drawn by `keys` `[B]`; float32, a pure function, traced once."""
        ...

    def facts(self, source: str, settings: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        """What a manifest says of it: `encoding` or `distillation`. `source`: SHA-256 of the set's manifest; `shapes`: of what is made."""
        ...


class Task(NamedTuple):
    """One scan.

    Attributes:
      shard: its number in the set.
      digest: of all that its bytes depend on.
    """

    shard: int
    name: str
    out: Path
    digest: str

    @property
    def file(self) -> Path:
        return self.out / "shards" / f"{self.name}{SUFFIX}"

    @property
    def entry(self) -> Path:
        return self.out / "parts" / f"{self.name}.json"


class Plan(NamedTuple):
    """What is to be done: `tasks`, of which `done` have been, as far as their files are what they were."""

    records: PreparedSet
    maker: Maker
    settings: MakerSettings
    out: Path
    tasks: list[Task]
    done: int
    before: Manifest | None

    @property
    def slices(self) -> int:
        return sum(map(self.count, self.tasks))

    def count(self, task: Task) -> int:
        """Slices of a scan."""
        return self.records.shards[task.shard].records * self.settings.copies

    @property
    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What the maker is shown of one crop, by name."""
        crop = self.settings.crop
        return {name: jax.ShapeDtypeStruct((1, crop, crop, MAP_CHANNELS.get(name, 1)), np.float32) for name in self.maker.reads}

    @property
    def made(self) -> dict[str, tuple[int, ...]]:
        """The shape of what the maker makes of one crop, by name."""
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        made = jax.eval_shape(
            lambda params, maps, keys: self.maker.make(params, maps, keys, self.settings), self.maker.params, self.inputs, keys
        )
        return {name: leaf.shape[1:] for name, leaf in made.items()}

    @property
    def kept(self) -> tuple[str, ...]:
        """Maps of the set that records have too."""
        return tuple(name for name in self.records.manifest.maps if name in self.settings.keep)

    def facts(self) -> dict[str, Any]:
        """What the manifest says of how it was made, and of what its records have."""
        return {**self.maker.facts(self.records.sha256, self.settings, self.made), "maps": (*self.made, *self.kept)}

    def preview(self) -> PreparedSet:
        """The set as it will be, for whoever is to be trained on it, before there is a record of it."""
        records = copy.copy(self.records)
        records.manifest = records.manifest.model_copy(update=self.facts())
        return records


def make_plan(records: PreparedSet, out: Path, maker: Maker, settings: MakerSettings) -> Plan:
    """Looks for what has been made of `records` in `out`.

    Raises:
      ConfigError: where the set is none of images, `out` holds something else, the crop does not suit the networks, the set has not what
        they are shown, or somebody would change their split.
    """
    out, folder = out.resolve(), records.folder.resolve()
    if records.manifest.precomputed:
        raise ConfigError(f"{shown(records.folder)} is of the kind '{records.manifest.precomputed}' already: give the set it was made of")
    if out == folder or folder in out.parents:
        raise ConfigError(f"{shown(out)} lies in the set {shown(folder)} that it is made of: choose another folder for it")
    if settings.crop % maker.multiple:
        raise ConfigError(f"--crop must be a multiple of {maker.multiple} for these networks, got {settings.crop}")
    if missing := [name for name in maker.reads if name not in records.manifest.maps]:
        raise ConfigError(f"{shown(records.folder)} has no {' and no '.join(missing)}, which the networks are shown: prepare it with them")
    check_settings(out, settings, settings_text(settings))
    before = next((read_manifest(path) for path in (out / MANIFEST, out / BEFORE) if path.exists()), None)
    check_nobody_moves(before, {shard.person: shard.split for shard in records.shards})
    wanted = [(i, shard) for i, shard in enumerate(records.shards) if shard.split in settings.splits]
    if not wanted:
        raise ConfigError(f"{shown(records.folder)} has nobody in its {' and '.join(settings.splits)} split: prepare a set of more people")
    tasks = [Task(i, Path(shard.file).stem, out, _digest(shard, settings)) for i, shard in wanted]
    return Plan(records, maker, settings, out, tasks, sum(read_part(task) is not None for task in tasks), before)


def source_set(source: Path) -> tuple[PreparedSet, str]:
    """The set, all of its splits, and SHA-256 of the settings that it was prepared with. Raises VolumeError where it is none."""
    records = PreparedSet(source, None)
    return records, hashlib.sha256(records.manifest.settings.encode()).hexdigest()


def describe(plan: Plan) -> dict[str, Any]:
    """What `--dry-run --json` prints."""
    scans = [(task, plan.records.shards[task.shard]) for task in plan.tasks]
    return {
        "scans": [{"id": shard.subject, "person": shard.person, "split": shard.split, "slices": plan.count(task)} for task, shard in scans],
        "slices": plan.slices,
        "crop": plan.settings.crop,
        "maps": [*plan.made, *plan.kept],
        "bytes": plan.slices * slice_bytes(plan),
        "parts": len(plan.tasks),
        "done": plan.done,
    }


def slice_bytes(plan: Plan) -> int:
    """Of a record before it is compressed; of the maps that come with the set, images alone."""
    made = sum(int(np.prod(shape)) for shape in plan.made.values())
    images = sum(name in ("high", "low") for name in plan.kept)
    return (made + images * plan.settings.crop**2) * np.dtype(plan.settings.dtype).itemsize


def read_part(task: Task) -> Part | None:
    """The part on the disk, if it is of the same and its shard is there."""
    try:
        part = Part.model_validate_json(task.entry.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, pydantic.ValidationError):
        return None
    return part if part.digest == task.digest and task.file.is_file() else None


def _digest(shard: Shard, settings: MakerSettings) -> str:
    facts = {
        "made_by": made_by(),
        "settings": settings.model_dump(mode="json"),
        "shard": shard.model_dump(mode="json", exclude={"split"}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def settings_text(settings: MakerSettings) -> str:
    return settings.model_dump_json(indent=1) + "\n"
