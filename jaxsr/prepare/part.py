"""One scan's part of a prepared set: its shard, its picture, and the entry that the manifest gets, which together appear or do not.

A part is a function of the scan's files, the settings and the version of jaxsr, and says so in its `digest`: where that still holds,
`prepare` leaves the part as it is.
"""

import functools
import hashlib
import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydantic

import jaxsr
from jaxsr.config import Strict
from jaxsr.data.layouts.base import Scan
from jaxsr.data.records import SUFFIX, Shard, Source, file_sha256, record_writer
from jaxsr.files import write_together
from jaxsr.prepare.picture import save_strip
from jaxsr.prepare.scan import prepare_scan
from jaxsr.prepare.settings import PrepareSettings
from jaxsr.prepare.slices import kept_slices, records
from jaxsr.volume.errors import VolumeError


class Task(NamedTuple):
    """One scan to prepare, once.

    Attributes:
      visit: which of its `visits` simulated acquisitions.
      root: the folder that source paths are relative to.
      out: the folder of the set.
    """

    scan: Scan
    visit: int
    visits: int
    settings: PrepareSettings
    root: Path
    out: Path
    gradient: Path | None = None

    @property
    def name(self) -> str:
        """Of its files."""
        return self.scan.id if self.visits == 1 else f"{self.scan.id}_visit-{self.visit}"

    @property
    def shard(self) -> Path:
        return self.out / "shards" / f"{self.name}{SUFFIX}"

    @property
    def picture(self) -> Path:
        return self.out / "pictures" / f"{self.name}.png"

    @property
    def entry(self) -> Path:
        return self.out / "parts" / f"{self.name}.json"


class Part(Strict):
    """What is known of a part on the disk: a digest of what it was made from, and its entry in the manifest, the split left open."""

    digest: str
    shard: Shard


def make_part(task: Task) -> Part:
    """Prepares the scan and writes its part; or returns the one that is there, where it was made of the same.

    Raises:
      VolumeError: where the scan cannot be used.
      FileError: where the part cannot be written.
    """
    sources = _sources(task)
    digest = _digest(task, sources)
    if (part := read_part(task)) and part.digest == digest and _sha256(task.shard) == part.shard.sha256:
        return part
    settings = task.settings
    prepared = prepare_scan(task.scan, settings, task.visit, task.gradient)
    kept = kept_slices(prepared, settings.least_tissue, settings.axes)
    if not any(kept):
        raise VolumeError(f"no slice is {settings.least_tissue:.0%} tissue that all its volumes saw: look at its volumes")
    found: dict[str, str] = {}

    def write_shard(path: Path) -> None:
        record_writer(records(prepared, settings.maps, kept, settings.dtype))(path)
        found["sha256"] = file_sha256(path)

    def entry() -> Part:
        shard = Shard(
            file=task.shard.relative_to(task.out).as_posix(),
            sha256=found["sha256"],
            subject=task.name,
            person=task.scan.person,
            visit=task.visit,
            records=sum(map(len, kept)),
            slices=(len(kept[0]), len(kept[1]), len(kept[2])),
            planes=(_ranges(kept[0]), _ranges(kept[1]), _ranges(kept[2])),
            shape=prepared.pair.grid.shape,
            affine=_rows(prepared.pair.grid.affine),
            window=(float(prepared.window.low), float(prepared.window.high)),
            acquired=_rounded(prepared.acquired),
            sources=sources,
            notes=prepared.notes,
        )
        return Part(digest=digest, shard=shard)

    write_together(
        {
            task.shard: write_shard,
            task.picture: functools.partial(save_strip, prepared),
            task.entry: lambda path: path.write_text(entry().model_dump_json(indent=1) + "\n", encoding="utf-8"),
        }
    )
    return entry()


def made_by() -> str:
    """The programs that a part's bytes depend on."""
    versions = [f"{name} {version(name)}" for name in ("jax", "numpy", "scipy", "nibabel")]
    with suppress(PackageNotFoundError):
        versions.append(f"SimpleITK {version('SimpleITK')}")
    return ", ".join([f"jaxsr {jaxsr.__version__}", *versions])


def read_part(task: Task) -> Part | None:
    """The part on the disk, or None where there is none that is whole."""
    try:
        part = Part.model_validate_json(task.entry.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, pydantic.ValidationError):
        return None
    return part if task.shard.is_file() and task.picture.is_file() else None


def _sources(task: Task) -> tuple[Source, ...]:
    """The scan's files and what is in them, sorted by role."""
    return tuple(
        Source(role=role, path=path.relative_to(task.root).as_posix(), sha256=_sha256(path))  # type: ignore[arg-type]
        for role, path in sorted(task.scan.files.items())
    )


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise VolumeError(f"{path} cannot be read ({error.strerror}): check that it is there and that you may read it") from error


def _digest(task: Task, sources: tuple[Source, ...]) -> str:
    """Of all that the part's bytes depend on; where a file lies is not among it, what it is called in the set is."""
    facts = {
        "made_by": made_by(),
        "settings": task.settings.model_dump(
            mode="json", exclude={"wanted": {"families"}, "split": True, "shares": True, "split_seed": True}
        ),
        "scan": [task.scan.id, task.scan.person, task.visit],
        "sources": [source.model_dump(mode="json") for source in sources],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _ranges(indices: list[int]) -> str:
    """Rising numbers as in '3-7,9'."""
    runs: list[list[int]] = []
    for i in indices:
        if runs and i == runs[-1][-1] + 1:
            runs[-1][-1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _rows(affine: np.ndarray) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in affine[:3].round(6) + 0.0)


def _rounded(size: tuple[float, float, float]) -> tuple[float, float, float]:
    x, y, z = (round(v, 4) for v in size)
    return x, y, z
