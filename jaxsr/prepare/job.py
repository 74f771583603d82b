"""`jaxsr prepare`: from a data set as people have it to shards that training reads.

Each scan is one task, done in a process of its own and written whole; what is done already, of the same files with the same settings, is
left as it is. So a run that is killed loses the scans it was at, and the set's bytes depend neither on how often it was stopped nor on how
many processes made it. Workers compute on the CPU with one thread each: results must not depend on how many threads there were.
"""

import os
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from jaxsr.config import ConfigError, Strict, differences
from jaxsr.data.itk import simpleitk
from jaxsr.data.layouts import find
from jaxsr.data.layouts.base import Found
from jaxsr.data.records import MANIFEST, Manifest, Rejected, file_sha256, read_manifest, write_manifest
from jaxsr.data.splits import Split
from jaxsr.files import FileError, shown, write_text
from jaxsr.prepare import pool
from jaxsr.prepare.part import Part, Task, made_by, make_part, read_part
from jaxsr.prepare.people import check_nobody_moves, people_by_own_name, same_people, split_people
from jaxsr.prepare.picture import save_contact_sheet
from jaxsr.prepare.settings import PrepareSettings
from jaxsr.prepare.summary import write_summary
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.memory import free_memory

WORKER_BYTES = 3 * 2**30  # what preparing one scan takes: measured at 256 × 256 × 256 with a registered second contrast, and some more
BEFORE = ".manifest-before.json"  # the manifest of the set as it was, while it is made anew

Advance = Callable[..., None]
Note = Callable[[str], None]


class Plan(NamedTuple):
    """What is to be done.

    Attributes:
      tasks: all, of which `done` have been, as far as their files are what they were.
      splits: people whose split is settled.
      before: the manifest of the set as it is.
    """

    found: Found
    tasks: list[Task]
    done: int
    splits: Mapping[str, Split]
    before: Manifest | None


def plan(
    root: Path, out: Path, settings: PrepareSettings, *, gradient: Path | None = None, splits: Mapping[str, Split] | None = None
) -> Plan:
    """Looks for scans, and for what is done of them. Reads names and entries only.

    Args:
      gradient: the file whose SHA-256 is in the settings.
      splits: people whose split is settled.

    Raises:
      VolumeError: where `root` is not there or holds no scan, or SimpleITK is missing and wanted.
      ConfigError: where `out` holds a set made with other settings, or somebody would change their split.
    """
    root, out = root.resolve(), out.resolve()
    if out == root or root in out.parents:
        raise ConfigError(f"{shown(out)} lies in the data set {shown(root)}, which would find its own output: choose another folder for it")
    check_settings(out, settings, _settings_text(settings))
    found = find(settings.layout, root, settings.wanted)
    if settings.bias != "off" or (settings.registration != "off" and any({"low", "reference"} & set(scan.files) for scan in found.scans)):
        with simpleitk():  # said now rather than of every scan
            pass
    tasks = []
    for scan in found.scans:
        visits = 1 if "low" in scan.files else settings.visits  # what is real has been acquired once
        tasks += [Task(scan, visit, visits, settings, root, out, gradient) for visit in range(visits)]
    before = next((read_manifest(path) for path in (out / MANIFEST, out / BEFORE) if path.exists()), None)
    if before:
        people = {scan.person for scan in found.scans}
        copies, _ = same_people(shard for shard in before.shards if shard.person in people)  # as far as is known without reading volumes
        names = {person: copies.get(person, person) for person in people}
        check_nobody_moves(before, split_people(names, people_by_own_name(found.scans), settings, splits or {})[0])
    return Plan(found, tasks, sum(read_part(task) is not None for task in tasks), splits or {}, before)


def prepare(
    plan: Plan, *, workers: int | None = None, advance: Advance = lambda *_, **__: None, note: Note = lambda text: None
) -> Manifest:
    """Makes the parts that are missing or damaged, then the manifest, the contact sheet and the summary.

    Args:
      workers: processes; by default one a core, fewer where memory is short.
      advance: told how many scans are done.
      note: told of scans that could not be prepared.

    Raises:
      VolumeError: where not one scan could be prepared.
      ConfigError: where somebody would change their split.
      FileError: where nothing can be written.
    """
    first = plan.tasks[0]
    out, settings = first.out, first.settings
    write_text(out / "settings.json", _settings_text(settings))
    if (out / MANIFEST).exists():  # what it says of parts that are made anew would not be true
        os.replace(out / MANIFEST, out / BEFORE)
    parts: dict[str, Part] = {}
    rejected = [Rejected(what=problem.path, why=problem.why, kind=problem.kind) for problem in plan.found.problems]
    for ended, (task, result) in enumerate(pool.run(plan.tasks, workers or default_workers(len(plan.tasks)), _attempt), 1):
        if isinstance(result, Part):
            parts[task.name] = result
        else:
            rejected.append(Rejected(what=task.name, why=result))
            note(f"rejected: {result if task.name in result else f'{task.name}: {result}'}")
        advance(ended, task.name)
    if not parts:
        reasons = "\n  ".join(f"{r.what}: {r.why}" for r in rejected[-10:])
        raise VolumeError(f"none of the {len(plan.tasks)} scans could be prepared:\n  {reasons}")

    names, copies = same_people(part.shard for part in parts.values())
    splits, unknown = split_people(names, people_by_own_name(plan.found.scans), settings, plan.splits)
    check_nobody_moves(plan.before, splits)
    for said in (*copies, *unknown):
        note(f"note: {said.what} {said.why}")
    manifest = Manifest(
        made_by=made_by(),
        voxel_size=settings.voxel_size,
        dtype=settings.dtype,
        maps=settings.maps,
        settings=_settings_text(settings),
        shards=tuple(parts[name].shard.model_copy(update={"split": splits[parts[name].shard.person]}) for name in sorted(parts)),
        rejected=tuple(sorted([*rejected, *copies, *unknown], key=lambda r: (r.what, r.why))),
    )
    sweep(out, set(parts))
    save_contact_sheet(out / "contact_sheet.png", {name: out / "pictures" / f"{name}.png" for name in sorted(parts)}, settings.maps)
    write_summary(out / "summary.html", manifest)
    write_manifest(out, manifest)  # last: with it the set is complete
    (out / BEFORE).unlink(missing_ok=True)
    return manifest


def scan_lines(plan: Plan, limit: int = 20) -> list[str]:
    """What `--dry-run` prints: each scan with its files, below the set's root."""
    lines = []
    for scan in plan.found.scans[:limit]:
        files = ", ".join(f"{role} {path.relative_to(plan.tasks[0].root)}" for role, path in scan.files.items())
        lines.append(f"  {scan.id} (person {scan.person}): {files}")
    if len(plan.found.scans) > limit:
        lines.append(f"  … and {len(plan.found.scans) - limit} more (--json lists all)")
    return lines


def degradation_note(settings: PrepareSettings) -> str | None:
    """What is to be said where the simulated side would be no coarser than the truth."""
    mm = settings.acquisition.typical.spacing
    if any(mm[axis] > settings.voxel_size * 1.01 for axis in settings.in_plane):
        return None
    size = " × ".join(f"{v:g}" for v in mm)
    return (
        f"the acquisition {settings.acquisition.name} ({size} mm) is no coarser than the target of {settings.voxel_size:g} mm: simulated "
        "pairs differ by noise and artefacts only: choose a finer --voxel-size or a coarser --acquisition"
    )


def describe(plan: Plan) -> dict[str, Any]:
    """What `--dry-run --json` prints."""
    return {
        "scans": [
            {"id": scan.id, "person": scan.person, "files": {role: str(path) for role, path in scan.files.items()}}
            for scan in plan.found.scans
        ],
        "problems": [{"path": problem.path, "why": problem.why, "kind": problem.kind} for problem in plan.found.problems],
        "parts": len(plan.tasks),
        "done": plan.done,
    }


def default_workers(tasks: int) -> int:
    """One a core, as far as the memory that is free goes."""
    memory = free_memory()
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(tasks, most, memory // WORKER_BYTES if memory else most))


def sha256_of(path: Path) -> str:
    """For the settings; VolumeError where the file cannot be read."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise VolumeError(f"{shown(path)} cannot be read ({error.strerror}): check that it is there and may be read") from error


def _attempt(task: Task) -> Part | str:
    """The part, or why there is none: one bad scan does not end a batch. What concerns all of them (a full disk) does."""
    try:
        return make_part(task)
    except FileError:
        raise
    except MemoryError as error:
        return f"out of memory ({error}): free some, or choose a larger --voxel-size"
    except (VolumeError, OSError) as error:
        return str(error).replace(f"{task.root}{os.sep}", "")  # the manifest does not say where the set lay
    except Exception as error:  # a mistake of ours, or of a library: no reason to lose the other scans
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def sweep(out: Path, names: set[str]) -> None:
    """Removes the parts of scans that are no longer there, or no longer usable, and what killed processes were writing."""
    for folder in ("shards", "pictures", "parts"):
        for path in (out / folder).glob("*"):
            if path.name.startswith(".") or path.stem not in names:
                with suppress(OSError):
                    path.unlink()


def check_settings(out: Path, settings: Strict, text: str) -> None:
    """Refuses to mix two sets in one folder, or to write into a folder of something else; `text`: the settings as they are written."""
    path = out / "settings.json"
    if path.exists():
        before = path.read_text(encoding="utf-8", errors="replace")
        if before != text:
            lines = "\n  ".join(_changes(before, type(settings), text))
            raise ConfigError(f"{shown(out)} holds a set prepared with other settings; choose another folder, or set back:\n  {lines}")
    elif out.exists() and (not out.is_dir() or any(not entry.name.startswith(".") for entry in out.iterdir())):
        raise ConfigError(f"{shown(out)} is there and holds no prepared set: choose a new folder")


def _changes(before: str, kind: type[Strict], now: str) -> list[str]:
    try:
        return differences(kind.model_validate_json(before), kind.model_validate_json(now))
    except pydantic.ValidationError:
        return ["settings.json is of another version, or of a set of another kind"]


def _settings_text(settings: PrepareSettings) -> str:
    return settings.model_dump_json(indent=1, exclude={"wanted": {"families"}}) + "\n"  # who is kin is in each person's name
