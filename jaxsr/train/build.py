"""What an experiment names, built: its method, its subjects, the stream of its slices, the shapes of a batch."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxsr.config import ConfigError
from jaxsr.data.acquired import Acquisitions
from jaxsr.data.cubes import CubeStream
from jaxsr.data.people import person_of
from jaxsr.data.pipeline import SliceStream, Stream, augmentation_of, check_maps
from jaxsr.data.prepared import PreparedSet
from jaxsr.data.record_stream import EncodedStream, RecordStream
from jaxsr.data.subjects import (
    AnatomySubjects,
    FolderSubjects,
    MixedSubjects,
    ScanSubjects,
    Split,
    Subjects,
    find_volumes,
    split_by_subject,
)
from jaxsr.data.synthetic import LabelSubjects, find_label_maps
from jaxsr.data.unpaired import HalfPaired, split_paired
from jaxsr.data.variety import Variety
from jaxsr.experiment import DataConfig, Experiment, SourceConfig
from jaxsr.methods.base import Method, Variables
from jaxsr.methods.condition import MAP_CHANNELS, TOLD, Batch, context_of, shape_of, takes_cubes, told_to, weighs_heads
from jaxsr.train.precomputed import check_precomputed, no_set
from jaxsr.train.state import abstract_variables
from jaxsr.volume.geometry import Kind

Note = Callable[[str], None]


def build_method(experiment: Experiment) -> Method:
    return experiment.method.build(jnp.bfloat16 if experiment.precision == "bf16" else jnp.float32)


def build_subjects(data: DataConfig, split: Split, seed: int, note: Note = lambda text: None) -> Subjects:
    """The subjects of one split of the set that `data` names; what was left out is told to `note`."""
    if not data.mixture:
        return _subjects(data, split, seed, data.acquisition, data.interpolation, note, maps=data.maps, carries=data.carries)
    parts = [_subjects(source, split, seed, source.acquisitions or data.acquisitions, data.interpolation, note) for source in data.mixture]
    return MixedSubjects([(part, source.share) for part, source in zip(parts, data.mixture, strict=True)])


def _subjects(
    of: DataConfig | SourceConfig, split: Split, seed: int, acquisition: Acquisitions, interpolation: Kind, note: Note, **rendered: Any
) -> Subjects:
    """Of one source; `rendered`: what else those take that are rendered."""
    how: dict[str, Any] = {"voxel_size": of.voxel_size, "acquisition": acquisition, "interpolation": interpolation, "seed": seed}
    native, variety = (of.native, of.variety) if isinstance(of, SourceConfig) else (False, Variety())

    def chosen(folder: Path, found: tuple[list[Path], list[str]], what: str) -> list[Path]:
        paths, left_out = found
        for sentence in left_out:
            note(f"left out: {sentence}")
        paths_of_split = split_by_subject(paths, folder, split, seed)
        note(f"{split}: {len(paths_of_split)} of {len(paths)} {what} in {folder}")
        return paths_of_split

    if of.labels is not None:
        paths = chosen(of.labels, find_label_maps(of.labels), "label maps")
        return LabelSubjects(paths, of.labels, of.subjects, split, contrast=of.contrast, smooth=variety.smooth, **how, **rendered)
    if of.volumes is not None:
        found = find_volumes(of.volumes, float("inf") if native else of.voxel_size)
        return FolderSubjects(chosen(of.volumes, found, "volumes"), of.volumes, native=native, variety=variety, **how)
    return AnatomySubjects(of.subjects, split, contrast=of.contrast, smooth=variety.smooth, **how, **rendered)


def prepared_set(data: DataConfig, split: Split = "train") -> PreparedSet | None:
    """One split of the prepared set that `data` names, if it names one."""
    return PreparedSet(data.manifest, split) if data.manifest else None


def fitted(experiment: Experiment, records: PreparedSet | None) -> Experiment:
    """With what the prepared set says of its slices, where the config does not.

    Raises:
      ConfigError: where it says another thing, or wants maps that the set has not.
    """
    precomputed = build_method(experiment).precomputed(experiment.data.crop)
    if records is None:
        if precomputed and precomputed.required:
            raise no_set(experiment)
        return experiment
    of_volumes = ("context", *(f"{name}_conditioning" for name in TOLD), "fused")
    alone = [f"method.{key}" for key in of_volumes if getattr(experiment.method, key, None)]
    alone += ["method.relative_to=head"] if weighs_heads(experiment.method) else []
    if alone:
        raise ConfigError(f"{' and '.join(alone)}: slices of a prepared set lie alone, and do not say it: name data.volumes or data.labels")
    data, manifest = experiment.data, records.manifest
    settings = json.loads(manifest.settings)
    found = {"voxel_size": manifest.voxel_size} | {key: settings[key] for key in ("interpolation",) if key in settings}
    for key, value in found.items():
        if key in data.model_fields_set and getattr(data, key) != value:
            raise ConfigError(
                f"data.{key} is {getattr(data, key)}, but the set of data.manifest={data.manifest} was prepared with {value}: "
                f"set data.{key}={value}, or prepare another"
            )
    largest = max(max(shard.shape) for shard in records.shards)
    if data.crop > 2 * largest:
        raise ConfigError(f"data.crop is {data.crop}, and slices of {records.folder} have at most {largest} pixels: choose a smaller crop")
    check_maps(data.maps, manifest.maps, str(records.folder))
    check_precomputed(experiment, manifest, precomputed)
    if manifest.encoding:
        found["augment"] = manifest.encoding.augment
    acquired = tuple(statistics.median(sizes) for sizes in zip(*(shard.acquired for shard in records.shards), strict=True))
    return experiment.model_copy(update={"data": data.model_copy(update={**found, "acquired": acquired})})


def build_stream(experiment: Experiment, subjects: Subjects | PreparedSet, note: Note = lambda text: None) -> Stream:
    data = experiment.data
    if data.unpaired and takes_unpaired(experiment):
        scans = unpaired_scans(data)
        note(f"{len(scans.ids)} scans without a pair in {data.unpaired}")
        paired = _stream(experiment, subjects, note)
        how: dict[str, Any] = {
            "draws": data.draws,
            "window": data.window,
            "augment": data.augment,
            "seed": experiment.seed + 1,
            "note": note,
        }
        lows = SliceStream(scans, (data.crop, data.crop), **how)
        return HalfPaired(paired, lows, paired, _apart(data, subjects, None), len(subjects.ids))
    if data.paired == 1:
        return _stream(experiment, subjects, note)
    if isinstance(subjects, PreparedSet):
        people = [shard.person for shard in subjects.shards]
    else:
        people = [person_of(PurePath(name.split("#")[0])) for name in subjects.ids]
    both = split_paired(people, data.paired, experiment.seed)
    if not takes_unpaired(experiment):
        note(f"pairs of {len(both[0])} of {len(people)} scans; the others are left out")
        return _stream(experiment, subjects, note, both[0])
    note(f"pairs of {len(both[0])} of {len(people)} scans; of the others it is not known what belongs together")
    paired, others = (_stream(experiment, subjects, note, chosen) for chosen in both)
    return HalfPaired(paired, others, others, _apart(data, subjects, both[1]))


def unpaired_scans(data: DataConfig) -> ScanSubjects:
    """Those of `data.unpaired`. Raises: as `find_volumes`."""
    assert data.unpaired
    paths, _ = find_volumes(data.unpaired, float("inf"), "data.unpaired")
    return ScanSubjects(paths, data.unpaired, voxel_size=data.voxel_size, interpolation=data.interpolation)


def _apart(data: DataConfig, subjects: Subjects | PreparedSet, chosen: Sequence[int] | None) -> int:
    """How far a slice of others lies from any in a stream: half a set, or as many as are drawn of one subject."""
    if not isinstance(subjects, PreparedSet):
        return data.draws
    return (len(subjects) if chosen is None else len(subjects.records_of(chosen))) // 2


def takes_unpaired(experiment: Experiment) -> bool:
    """Whether batches hold slices without a pair: there are such, and the method learns from them."""
    some = experiment.data.paired < 1 or experiment.data.unpaired is not None
    return some and getattr(experiment.method, "unpaired", False)


def _stream(experiment: Experiment, subjects: Subjects | PreparedSet, note: Note, chosen: Sequence[int] | None = None) -> Stream:
    """Of the subjects, or shards, `chosen`; None: of all."""
    data, crop = experiment.data, (experiment.data.crop, experiment.data.crop)
    if isinstance(subjects, PreparedSet):
        precomputed = build_method(experiment).precomputed(data.crop)
        taken = tuple(precomputed.shapes) if precomputed and subjects.manifest.precomputed else ("high", "low")
        names = (*taken, *(name for name in data.maps if name not in taken))
        records = None if chosen is None else subjects.records_of(chosen)
        if subjects.manifest.encoding:
            return EncodedStream(subjects, names, chosen=records, seed=experiment.seed, note=note)
        return RecordStream(subjects, crop, names, augment=data.augment, chosen=records, seed=experiment.seed, note=note)
    how: dict[str, Any] = {"draws": data.draws, "window": data.window, "augment": data.augment, "maps": data.maps, "chosen": chosen}
    context, told = context_of(experiment.method), told_to(experiment.method)
    if "scale" in told and augmentation_of(data.augment).rotation:
        raise ConfigError(
            "data.augment.rotation: of a slice that is turned nobody can say how coarse it is along its rows, as method.scale_conditioning "
            "wants: set one of them to 0"
        )
    if "quality" in told and augmentation_of(data.augment).gamma:
        raise ConfigError(
            "data.augment.gamma: in a window that is bent noise is not what method.quality_conditioning tells: set one of them to 0; what "
            "is scanned is bent by contrasts of data.mixture"
        )
    if weighs_heads(experiment.method) and augmentation_of(data.augment).gamma:
        raise ConfigError(
            "data.augment.gamma: in a window that is bent a slice lacks other than its head does, by which method.relative_to=head weighs: "
            "set data.augment.gamma=0, or method.relative_to=slice"
        )
    how |= {"context": context, "scale": "scale" in told, "quality": "quality" in told, "lacks": weighs_heads(experiment.method)}
    how |= {"seed": experiment.seed, "note": note}
    if takes_cubes(experiment.method):
        return CubeStream(subjects, data.crop, stacks="axes" in told, **how)
    return SliceStream(subjects, crop, **how)


def variables_to_upscale(experiment: Experiment, method: Method) -> Variables:
    """Shapes and dtypes of all that `method.upscale` computes with."""
    image = jax.ShapeDtypeStruct((1, experiment.data.crop, experiment.data.crop, 1), jnp.float32)
    found = abstract_variables(method, Batch(image, image))  # type: ignore[arg-type]
    trained = {
        kind: {name: tree for name, tree in found[kind].items() if name not in only_to_train(method)} for kind in ("params", "stats")
    }
    return {**trained, "frozen": nn.meta.unbox(method.frozen())}


def only_to_train(method: Method) -> tuple[str, ...]:
    """Networks and statistics that nothing is upscaled with."""
    return getattr(method, "only_to_train", ())


def abstract_batch(experiment: Experiment, records: PreparedSet | None = None, encoded: bool = False) -> Batch:
    """Shapes of one global batch; `records`: the prepared set that it is of, where that may be an encoded one; `encoded`: as of such a set.

    Raises:
      ConfigError: where it is to be encoded, and the method has no use for that.
    """
    size, crop = experiment.train.batch_size, experiment.data.crop
    plane = (size, crop, crop)
    image = jax.ShapeDtypeStruct((*plane, 1), jnp.float32)
    optional = {
        "reference": image,
        "bias": image,
        "gradient": jax.ShapeDtypeStruct((*plane, MAP_CHANNELS["gradient"]), jnp.float32),
        "jacobian": image,
        "labels": jax.ShapeDtypeStruct(plane, jnp.uint8),
        "mask": jax.ShapeDtypeStruct((*plane, 1), jnp.bool_),
    }
    shapes: dict[str, Any] = {"high": image, "low": image}
    if context := context_of(experiment.method):
        shapes["beside"] = jax.ShapeDtypeStruct((*plane, 2 * context), jnp.float32)
    for name in told_to(experiment.method):
        shapes[name] = jax.ShapeDtypeStruct(shape_of(experiment.method, name, plane), jnp.float32)
    if weighs_heads(experiment.method):
        shapes["lacks"] = jax.ShapeDtypeStruct((size,), jnp.float32)
    precomputed = build_method(experiment).precomputed(crop)
    if encoded and not precomputed:
        raise ConfigError(f"method.kind={experiment.method.kind} trains on slices alone, so there is nothing to be encoded")
    if precomputed and (encoded or precomputed.required or (records and records.manifest.precomputed)):
        taken = {name: jax.ShapeDtypeStruct((size, *shape), jnp.float32) for name, shape in precomputed.shapes.items()}
        shapes = {"high": None, "low": None} | taken
    if takes_unpaired(experiment):
        shapes["paired"] = jax.ShapeDtypeStruct((size,), jnp.float32)
    return Batch(**shapes, **{name: optional[name] for name in experiment.data.maps})  # type: ignore[arg-type]
