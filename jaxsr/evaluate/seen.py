"""Whether a model has seen a benchmark's heads in training, as far as run directories say: its own, and those of the networks that it holds
or started from, which were trained on heads of their own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxsr.config import ConfigError
from jaxsr.data.records import MANIFEST, Manifest, file_sha256, read_manifest
from jaxsr.data.splits import SPLITS
from jaxsr.experiment import Experiment
from jaxsr.train.loop import MANIFEST_SUM, VOLUMES
from jaxsr.upscale.model import ModelError, is_model, read_experiment
from jaxsr.volume.errors import VolumeError
from jaxsr.weights.file import WeightsError

OWN = "model"  # how `trained_on` calls the run itself
_RENDERED = "trained on heads rendered from label maps; whose they are is not known"
_EXPORTED = "an exported model does not say what it was trained on"


class _Found(NamedTuple):
    """What one run directory says: head → its split there; and why that is not all."""

    splits: dict[str, str]
    why: str | None = None


def manifest_sha256(run: Path) -> str | None:
    """SHA-256 of the manifest that a run was trained on, where it was."""
    try:
        return next(iter((run / MANIFEST_SUM).read_text(encoding="utf-8").split()), None)
    except (OSError, ValueError):
        return None


def seen_heads(source: Path, experiment: Experiment, heads: Mapping[str, Path], sha256: Mapping[str, str]) -> dict[str, Any]:
    """Which of the heads (subject → file; → SHA-256) the model in `source` has been trained on, by SHA-256 or resolved path.

    Networks that its config names under `method.weights`, and those that these name, have seen for it what they have seen. Weights that
    were imported have seen none: those that are published were not trained on heads.

    Returns, for metrics.json: `known`, whether all training data could be looked at; `why` not; `train`, `validation` and `test`: subjects
    of heads in that split, of which a folder of volumes names the first only; `trained_on`: those of `train` by who was trained on them,
    'model' or the network's name.
    """
    parts = _parts(source, experiment, heads, sha256)
    by_split: dict[str, list[str]] = {"train": []}
    for subject in sha256:
        if found := [part.splits[subject] for part in parts.values() if subject in part.splits]:
            by_split.setdefault(min(found, key=SPLITS.index), []).append(subject)
    trained_on = {who: [subject for subject in sha256 if part.splits.get(subject) == "train"] for who, part in parts.items()}
    whys = [part.why if who == OWN else f"its {who}: {part.why}" for who, part in parts.items() if part.why]
    why = {"why": "; ".join(whys)} if whys else {}
    return {"known": not whys, **why, **by_split, "trained_on": {who: subjects for who, subjects in trained_on.items() if subjects}}


def seen_note(name: str, seen: Mapping[str, Any], of: int) -> str | None:
    """What readers of the numbers must know of it."""
    count = len(seen.get("train", ()))
    if not count:
        return None
    are = "is" if count == 1 else "are"
    who = " or of ".join(name if who == OWN else f"the {who} of {name}" for who in seen["trained_on"])
    return f"{count} of {of} heads {are} in the training split of {who}: their scores say nothing of unseen heads"


def _parts(source: Path, experiment: Experiment, heads: Mapping[str, Path], sha256: Mapping[str, str]) -> dict[str, _Found]:
    """Of the model in `source`, and of every network that its config names, by name."""
    if not source.is_dir():
        return {OWN: _Found({}, _EXPORTED)}
    parts = {OWN: _of_run(source, experiment, heads, sha256)}
    for name, path in getattr(experiment.method, "weights", ()):
        if path is None:
            continue
        network = name.replace("_", " ")
        try:
            if path.is_dir():
                inner = _parts(path, read_experiment(path), heads, sha256)
                parts |= {network if who == OWN else f"{who} of the {network}": found for who, found in inner.items()}
            elif is_model(path):
                parts[network] = _Found({}, _EXPORTED)
        except (ConfigError, ModelError, WeightsError, OSError):
            parts[network] = _Found({}, "it cannot be read where the config says that it is")
    return parts


def _of_run(run: Path, experiment: Experiment, heads: Mapping[str, Path], sha256: Mapping[str, str]) -> _Found:
    data = experiment.data
    if data.mixture:
        found = _of_volumes(run, [source.volumes for source in data.mixture if source.volumes], heads, sha256)
        return found._replace(why=found.why or _RENDERED) if any(source.labels for source in data.mixture) else found
    if data.manifest is not None:
        return _of_manifest(run, data.manifest, experiment, sha256)
    if data.volumes is not None:
        return _of_volumes(run, [data.volumes], heads, sha256)
    if data.labels is not None:
        return _Found({}, _RENDERED)
    return _Found({})  # the embedded anatomy, which is nobody's head


def _of_manifest(run: Path, path: Path, experiment: Experiment, sha256: Mapping[str, str]) -> _Found:
    file = path / MANIFEST if path.is_dir() else path
    try:
        if file_sha256(file) != manifest_sha256(run):
            return _Found({}, "the prepared set is not the one that the run was trained on")
        manifest = read_manifest(file)
    except (OSError, VolumeError):
        return _Found({}, "the prepared set that the run was trained on is not there")
    shards = sorted(manifest.shards, key=lambda shard: SPLITS.index(shard.split), reverse=True)  # what is in two was trained on
    splits = {part.sha256: shard.split for shard in shards for part in shard.sources}
    return _Found({subject: splits[digest] for subject, digest in sha256.items() if digest in splits}, _unnamed(manifest, experiment))


def _unnamed(manifest: Manifest, experiment: Experiment) -> str | None:
    """Why the training heads of the networks that made the set are not known: the set has no more of them than SHA-256."""
    if manifest.distillation:
        return "what it was taught is of a teacher that the distilled set does not name, so whose heads that has seen is not known"
    named = {name for name, path in getattr(experiment.method, "weights", ()) if path is not None}
    if manifest.encoding and "autoencoder" not in named:  # an image encoder of an encoded set was imported
        return "the config does not name the autoencoder that encoded the set, so whose heads that has seen is not known"
    return None


def _of_volumes(run: Path, folders: Sequence[Path], heads: Mapping[str, Path], sha256: Mapping[str, str]) -> _Found:
    try:
        names = (run / VOLUMES).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return _Found({}, f"the run directory has no {VOLUMES}")
    names = [name for name in names if "#" not in name]  # those are people rendered from a label map
    found = {name: [path for folder in folders if (path := (folder / name).resolve()).is_file()] for name in names}
    places = {path for paths in found.values() for path in paths}
    there = {path: path.stat().st_size for path in places}
    sizes = {heads[subject].stat().st_size for subject in sha256}  # only what is as long can be the same
    digests = {file_sha256(path) for path, size in there.items() if size in sizes}
    train = [subject for subject, digest in sha256.items() if heads[subject].resolve() in places or digest in digests]
    gone = sum(not paths for paths in found.values())
    why = f"{gone} of {len(found)} training volumes are not where they were" if gone else None
    return _Found(dict.fromkeys(train, "train"), why)
