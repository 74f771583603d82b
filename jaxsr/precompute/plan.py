"""What is to be encoded of a prepared set, with what, and how far it is."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import pydantic

from jaxsr.config import ConfigError, Strict
from jaxsr.data.augmentation import AugmentConfig
from jaxsr.data.prepared import PreparedSet
from jaxsr.data.records import MANIFEST, SUFFIX, Encoding, Manifest, Shard, read_manifest
from jaxsr.files import shown
from jaxsr.precompute.encoders import Encoders
from jaxsr.prepare.job import BEFORE, check_settings
from jaxsr.prepare.part import Part, made_by
from jaxsr.prepare.people import check_nobody_moves


class EncodeSettings(Strict):
    """Attributes:
    prepared: SHA-256 of the settings that the set was prepared with.
    autoencoder, image_encoder: SHA-256 of their parameters.
    tokens: of the image encoder: pooled, or patches: all of them too.
    crop: side of the squares in pixels; smaller slices are padded with background.
    copies: of each slice.
    augment: how slices are varied.
    keep: images that records have too: high, for a loss on the decoded estimate; low, for an image encoder that is trained.
    dtype: of latents, tokens, images and maps.
    precision: of the computation.
    seed: of crops and augmentation.
    """

    prepared: str
    autoencoder: str
    image_encoder: str | None = None
    tokens: Literal["pooled", "patches"] = "pooled"
    crop: int = pydantic.Field(256, ge=8)
    copies: int = pydantic.Field(1, ge=1, le=1000)
    augment: AugmentConfig = AugmentConfig()
    keep: tuple[Literal["high", "low"], ...] = ()
    dtype: Literal["float16", "float32"] = "float16"
    precision: Literal["f32", "bf16"] = "f32"
    seed: int = pydantic.Field(0, ge=0)


class Task(NamedTuple):
    """One scan to encode.

    Attributes:
      shard: its number in the set that is encoded.
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
    encoders: Encoders
    settings: EncodeSettings
    out: Path
    tasks: list[Task]
    done: int
    before: Manifest | None

    @property
    def slices(self) -> int:
        return len(self.records) * self.settings.copies

    def count(self, task: Task) -> int:
        """Slices of a scan."""
        return self.records.shards[task.shard].records * self.settings.copies


def plan(source: Path, out: Path, encoders: Encoders, **settings: Any) -> Plan:
    """Looks at the prepared set `source`, and for what is encoded of it in `out`.

    Args:
      settings: of `EncodeSettings`, but for the networks'; `crop` None: that of the autoencoder's training.

    Raises:
      VolumeError: where `source` is no prepared set.
      ConfigError: where it is encoded already, `out` holds something else, the crop does not suit the autoencoder, or somebody would
        change their split.
    """
    records, out = PreparedSet(source, None), out.resolve()
    if records.manifest.encoding:
        raise ConfigError(f"{shown(source)} is an encoded set already: give the one that it was made of")
    folder = records.folder.resolve()
    if out == folder or folder in out.parents:
        raise ConfigError(f"{shown(out)} lies in the set {shown(folder)} that is to be encoded: choose another folder for it")
    crop = settings.pop("crop") or encoders.crop or 256
    if crop % encoders.autoencoder.multiple:
        raise ConfigError(f"--crop must be a multiple of {encoders.autoencoder.multiple} for this autoencoder, got {crop}")
    prepared = hashlib.sha256(records.manifest.settings.encode()).hexdigest()
    chosen = EncodeSettings.model_validate({"prepared": prepared, **encoders.sha256, **settings, "crop": crop})
    check_settings(out, chosen, settings_text(chosen))
    before = next((read_manifest(path) for path in (out / MANIFEST, out / BEFORE) if path.exists()), None)
    check_nobody_moves(before, {shard.person: shard.split for shard in records.shards})
    tasks = [Task(i, Path(shard.file).stem, out, _digest(shard, chosen)) for i, shard in enumerate(records.shards)]
    return Plan(records, encoders, chosen, out, tasks, sum(read_part(task) is not None for task in tasks), before)


def describe(plan: Plan) -> dict[str, Any]:
    """What `--dry-run --json` prints."""
    return {
        "scans": [
            {"id": shard.subject, "person": shard.person, "split": shard.split, "slices": shard.records * plan.settings.copies}
            for shard in plan.records.shards
        ],
        "slices": plan.slices,
        "crop": plan.settings.crop,
        "maps": [*encoded_names(plan.settings), *stored_maps(plan)],
        "bytes": plan.slices * slice_bytes(plan),
        "parts": len(plan.tasks),
        "done": plan.done,
    }


def slice_bytes(plan: Plan) -> int:
    """Of a record before it is compressed, the maps that come with the set left out."""
    crop, encoding = plan.settings.crop, encoding_of(plan)
    made = sum(int(np.prod(getattr(encoding, name))) for name in encoded_names(plan.settings))
    return (made + len(plan.settings.keep) * crop**2) * np.dtype(plan.settings.dtype).itemsize


def stored_maps(plan: Plan) -> tuple[str, ...]:
    """Maps of the set that records have too."""
    return tuple(name for name in plan.records.manifest.maps if name not in ("high", "low") or name in plan.settings.keep)


def encoded_names(settings: EncodeSettings) -> tuple[str, ...]:
    of_image = ("pooled", "tokens") if settings.tokens == "patches" else ("pooled",)
    return ("latents", "low_latents", *(of_image if settings.image_encoder else ()))


def encoding_of(plan: Plan) -> Encoding:
    settings = plan.settings
    image = jax.ShapeDtypeStruct((1, settings.crop, settings.crop, 1), np.float32)
    made = jax.eval_shape(functools.partial(plan.encoders.encode, tokens=settings.tokens == "patches"), plan.encoders.params, image, image)
    about = {name: getattr(settings, name) for name in ("autoencoder", "image_encoder", "crop", "copies", "augment")}
    return Encoding(source=plan.records.sha256, **about, **{name: leaf.shape[1:] for name, leaf in made.items()})


def read_part(task: Task) -> Part | None:
    """The part on the disk, if it is of the same and its shard is there."""
    try:
        part = Part.model_validate_json(task.entry.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, pydantic.ValidationError):
        return None
    return part if part.digest == task.digest and task.file.is_file() else None


def _digest(shard: Shard, settings: EncodeSettings) -> str:
    facts = {
        "made_by": made_by(),
        "settings": settings.model_dump(mode="json"),
        "shard": shard.model_dump(mode="json", exclude={"split"}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def settings_text(settings: EncodeSettings) -> str:
    return settings.model_dump_json(indent=1) + "\n"
