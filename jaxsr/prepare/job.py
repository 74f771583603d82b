"""`jaxsr prepare`: from a data set as people have it to shards that training reads.

Each scan is one task, done in a process of its own and written whole; what is done already, of the same files with the same settings, is
left as it is. So a run that is killed loses the scans it was at, and the set's bytes depend neither on how often it was stopped nor on how
many processes made it. Workers compute on the CPU with one thread each: results must not depend on how many threads there were.
"""

import contextlib
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jaxsr
from jaxsr.config import ConfigError
from jaxsr.data.layouts import find
from jaxsr.data.layouts.base import Found
from jaxsr.data.records import Manifest, Rejected, Shard, file_sha256, write_manifest
from jaxsr.data.splits import Split, assign_splits
from jaxsr.files import FileError, shown, write_text
from jaxsr.prepare.part import Part, Task, make_part, read_part
from jaxsr.prepare.picture import save_contact_sheet
from jaxsr.prepare.settings import PrepareSettings
from jaxsr.prepare.summary import write_summary
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.memory import free_memory

WORKER_BYTES = 3 * 2**30  # what preparing one scan takes: measured at 256 × 256 × 256 with a registered second contrast, and some more

Advance = Callable[..., None]
Note = Callable[[str], None]
Item = TypeVar("Item")

_ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
}


class Plan(NamedTuple):
    """What is to be done: `tasks` in all, of which `done` have been; `splits` says where people are who have been told apart before."""

    found: Found
    tasks: list[Task]
    done: int
    splits: Mapping[str, Split]


def plan(
    root: Path, out: Path, settings: PrepareSettings, *, gradient: Path | None = None, splits: Mapping[str, Split] | None = None
) -> Plan:
    """Looks for scans, and for what is done of them. Reads names and entries only.

    Args:
      gradient: the file whose SHA-256 is in the settings.
      splits: people whose split is settled.

    Raises:
      VolumeError: where `root` is not there or holds no scan.
      ConfigError: where `out` holds a set made with other settings.
    """
    root, out = root.resolve(), out.resolve()
    if out == root or root in out.parents:
        raise ConfigError(f"{shown(out)} lies in the data set {shown(root)}, which would find its own output: choose another folder for it")
    _check_settings(out, settings)
    found = find(settings.layout, root, settings.wanted)
    tasks = [Task(scan, visit, settings, root, out, gradient) for scan in found.scans for visit in range(settings.visits)]
    return Plan(found, tasks, sum(read_part(task) is not None for task in tasks), splits or {})


def prepare(
    plan: Plan, *, workers: int | None = None, advance: Advance = lambda *_, **__: None, note: Note = lambda text: None
) -> Manifest:
    """Makes the parts that are missing, then the manifest, the contact sheet and the summary.

    Args:
      workers: processes; by default one a core, fewer where memory is short.
      advance: told how many scans are done.
      note: told of scans that could not be prepared.

    Raises:
      VolumeError: where not one scan could be prepared.
      FileError: where nothing can be written.
    """
    first = plan.tasks[0]
    out, settings = first.out, first.settings
    write_text(out / "settings.json", _settings_text(settings))
    parts: dict[str, Part] = {}
    rejected: list[Rejected] = [Rejected(what=p.path, why=p.why, kind=p.kind) for p in plan.found.problems]
    for task, result in _run(plan.tasks, workers or default_workers(len(plan.tasks)), _attempt):
        if isinstance(result, Part):
            parts[task.name] = result
        else:
            rejected.append(Rejected(what=task.name, why=result))
            note(f"rejected: {result if task.name in result else f'{task.name}: {result}'}")
        advance(len(parts) + len(rejected) - len(plan.found.problems), task.name)
    if not parts:
        reasons = "\n  ".join(f"{r.what}: {r.why}" for r in rejected[-10:])
        raise VolumeError(f"none of the {len(plan.tasks)} scans could be prepared:\n  {reasons}")

    same, said = same_people([part.shard for part in parts.values()])
    rejected += said
    splits = assign_splits(set(same.values()), settings.seed, settings.shares, stable=settings.split == "stable", given=plan.splits)
    shards = tuple(parts[name].shard.model_copy(update={"split": splits[same[parts[name].shard.person]]}) for name in sorted(parts))
    manifest = Manifest(
        made_by=f"jaxsr {jaxsr.__version__}",
        voxel_size=settings.voxel_size,
        dtype=settings.dtype,
        maps=settings.maps,
        settings=_settings_text(settings),
        shards=shards,
        rejected=tuple(sorted(rejected, key=lambda r: (r.what, r.why))),
    )
    pictures = {shard.subject: out / "pictures" / f"{shard.subject}.png" for shard in shards}
    save_contact_sheet(out / "contact_sheet.png", pictures, settings.maps)
    write_summary(out / "summary.html", manifest)
    write_manifest(out, manifest)  # last: with it the set is complete
    return manifest


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


def same_people(shards: Sequence[Shard]) -> tuple[dict[str, str], list[Rejected]]:
    """Each person with the name that their split goes by, and what is to be said: people who share a truth, byte for byte, are one."""
    name = {shard.person: shard.person for shard in shards}
    first: dict[str, str] = {}
    said = []
    for shard in sorted(shards, key=lambda shard: shard.person):
        truth = next(source.sha256 for source in shard.sources if source.role == "high")
        other, own = name[first.setdefault(truth, shard.person)], name[shard.person]
        if other != own:
            said.append(Rejected(what=shard.subject, why=f"its truth is a copy of one of {other}: both are in one split", kind="note"))
            name = {person: other if called == own else called for person, called in name.items()}
    return name, said


def default_workers(tasks: int) -> int:
    """One a core, as far as the memory that is free goes."""
    memory = free_memory()
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(tasks, most, memory // WORKER_BYTES if memory else most))


def _run(tasks: Sequence[Item], workers: int, attempt: Callable[[Item], Part | str]) -> Iterator[tuple[Item, Part | str]]:
    """Each task with what `attempt` made of it: its part, or why there is none; in the order in which they end.

    A worker that dies (killed for memory, mostly) takes down what the others were at: those tasks are begun again one at a time, and one
    that dies alone is given up.
    """
    left = list(tasks)
    while left:
        ended: set[int] = set()
        try:
            with _pool(workers) as pool:
                futures: dict[Future[Part | str], int] = {pool.submit(attempt, task): i for i, task in enumerate(left)}
                for future in as_completed(futures):
                    result = future.result()
                    ended.add(futures[future])
                    yield left[futures[future]], result
        except BrokenProcessPool:
            if workers == 1:
                died = min(set(range(len(left))) - ended)
                ended.add(died)
                yield (
                    left[died],
                    "the process that prepared it died, most likely for want of memory: see that 4 GB are free for each of --workers",
                )
            workers = 1
        left = [task for i, task in enumerate(left) if i not in ended]


def _attempt(task: Task) -> Part | str:
    """The part, or why there is none: one bad scan does not end a batch. What concerns all of them (a full disk) does."""
    try:
        return make_part(task)
    except FileError:
        raise
    except MemoryError as error:
        return f"out of memory ({error}): free some, or choose a larger --voxel-size"
    except (VolumeError, OSError) as error:
        return _inside(str(error), task.root)
    except Exception as error:  # a mistake of ours, or of a library: no reason to lose the other scans
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def _inside(why: str, root: Path) -> str:
    """`why` with the set's files called as they are below its root: the manifest does not say where the set lay."""
    return why.replace(f"{root}{os.sep}", "")


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that have not inherited JAX's threads, whose libraries use one thread each, and that do not outlive this one."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    flags = os.environ.get("XLA_FLAGS")
    os.environ.update(_ONE_THREAD)
    os.environ["XLA_FLAGS"] = f"{flags or ''} --xla_cpu_multi_thread_eigen=false".strip()
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.kill()  # nothing is lost: a part appears whole or not at all
        raise
    finally:
        pool.shutdown()
        for name, value in (*before.items(), ("XLA_FLAGS", flags)):
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _start_worker() -> None:
    import signal

    from jaxsr.runtime.cache import use_compilation_cache

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    use_compilation_cache()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _check_settings(out: Path, settings: PrepareSettings) -> None:
    """Refuses to mix two sets in one folder, or to write into a folder of something else."""
    path = out / "settings.json"
    if path.exists():
        before = path.read_text(encoding="utf-8", errors="replace")
        if before != _settings_text(settings):
            changed = sorted(set(_settings_text(settings).splitlines()) ^ set(before.splitlines()))
            lines = "\n  ".join(line.strip(" ,") for line in changed[:20])
            raise ConfigError(f"{shown(out)} holds a set prepared with other settings; choose another folder, or set back:\n  {lines}")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{shown(out)} is there and holds no prepared set: choose a new folder")


def _settings_text(settings: PrepareSettings) -> str:
    return settings.model_dump_json(indent=1, exclude={"wanted": {"families"}}) + "\n"  # who is kin is in each person's name


def sha256_of(path: Path) -> str:
    """For the settings; VolumeError where the file cannot be read."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise VolumeError(f"{shown(path)} cannot be read ({error.strerror}): check that it is there and may be read") from error
