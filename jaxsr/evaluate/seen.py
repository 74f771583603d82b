"""Whether a model has seen a benchmark's heads in training, as far as its run directory says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsr.data.records import MANIFEST, file_sha256, read_manifest
from jaxsr.experiment import DataConfig
from jaxsr.train.loop import MANIFEST_SUM, VOLUMES
from jaxsr.volume.errors import VolumeError


def manifest_sha256(run: Path) -> str | None:
    """SHA-256 of the manifest that a run was trained on, where it was."""
    try:
        return next(iter((run / MANIFEST_SUM).read_text(encoding="utf-8").split()), None)
    except (OSError, ValueError):
        return None


def seen_heads(source: Path, data: DataConfig, heads: Mapping[str, Path], sha256: Mapping[str, str]) -> dict[str, Any]:
    """Which of the heads (subject → file; → SHA-256) the model in `source` was trained on, by SHA-256 or resolved path.

    Returns, for metrics.json: `known`, whether all training data could be looked at; `why` not; `train`, `validation` and `test`: subjects
    of heads in that split, of which a folder of volumes names the first only.
    """
    if not source.is_dir():
        return {"known": False, "why": "an exported model does not say what it was trained on"}
    if data.manifest is not None:
        return _of_manifest(source, data.manifest, sha256)
    if data.volumes is not None:
        return _of_volumes(source, data.volumes, heads, sha256)
    if data.labels is not None:
        return {"known": False, "why": "trained on heads rendered from label maps; whose they are is not known"}
    return {"known": True, "train": []}  # the embedded anatomy, which is nobody's head


def seen_note(name: str, seen: Mapping[str, Any], of: int) -> str | None:
    """What readers of the numbers must know of it."""
    count = len(seen.get("train", ()))
    if not count:
        return None
    are = "is" if count == 1 else "are"
    return f"{count} of {of} heads {are} in the training split of {name}: their scores say nothing of unseen heads"


def _of_manifest(run: Path, path: Path, sha256: Mapping[str, str]) -> dict[str, Any]:
    file = path / MANIFEST if path.is_dir() else path
    try:
        if file_sha256(file) != manifest_sha256(run):
            return {"known": False, "why": "the prepared set is not the one that the run was trained on"}
        manifest = read_manifest(file)
    except (OSError, VolumeError):
        return {"known": False, "why": "the prepared set that the run was trained on is not there"}
    shards = sorted(manifest.shards, key=lambda shard: shard.split == "train")  # last, as what is in two splits was trained on
    splits = {part.sha256: shard.split for shard in shards for part in shard.sources}
    found: dict[str, list[str]] = {"train": []}
    for subject, digest in sha256.items():
        if digest in splits:
            found.setdefault(splits[digest], []).append(subject)
    return {"known": True, **found}


def _of_volumes(run: Path, folder: Path, heads: Mapping[str, Path], sha256: Mapping[str, str]) -> dict[str, Any]:
    try:
        names = (run / VOLUMES).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return {"known": False, "why": f"the run directory has no {VOLUMES}"}
    places = {(folder / name).resolve() for name in names}
    there = {path: path.stat().st_size for path in places if path.is_file()}
    sizes = {heads[subject].stat().st_size for subject in sha256}  # only what is as long can be the same
    digests = {file_sha256(path) for path, size in there.items() if size in sizes}
    train = [subject for subject, digest in sha256.items() if heads[subject].resolve() in places or digest in digests]
    gone = len(places) - len(there)
    why = {"why": f"{gone} of {len(places)} training volumes are not where they were"} if gone else {}
    return {"known": not gone, **why, "train": train}
