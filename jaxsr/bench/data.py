"""How fast slices come: the trainer's own stream and batches, taken as fast as they are given; nothing is trained.

Shards lie in the page cache after they have been read once, or written. `cold` asks the kernel to drop them before each run, which it does
for pages that are on the disk already; even then what is measured is this machine's disk, with a cache of its own.
"""

import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jaxsr.bench.count import quantity
from jaxsr.bench.measure import circumstances, summary
from jaxsr.config import to_dict
from jaxsr.data.pipeline import Stream, batches
from jaxsr.experiment import Experiment
from jaxsr.train.build import build_stream, build_subjects, fitted, prepared_set

PARTS = 10


def bench_data(experiment: Experiment, workers: Sequence[int] = (0, 1, 2, 4), seconds: float = 5.0, cold: bool = False) -> dict[str, Any]:
    """Takes batches for `seconds` with each number of `workers` (threads; 0: none beside the caller's), as JSON can hold it.

    Raises: as training on the set would.
    """
    records = prepared_set(experiment.data)
    experiment = fitted(experiment, records)
    subjects = records or build_subjects(experiment.data, "train", experiment.seed)
    files = [records.folder / name for name in records.ids] if records else []
    stored = sum(file.stat().st_size for file in files)
    runs = []
    for count in workers:
        if cold:
            _forget(files)
        with build_stream(experiment, subjects) as stream:
            runs.append({"workers": count, **_measure(stream, experiment.train.batch_size, count, seconds)})
        if records:
            runs[-1]["stored_bytes_per_second"] = runs[-1]["slices_per_second"] * stored / len(records)
    data = to_dict(experiment)["data"]
    placeless = experiment.data.model_copy(update={"manifest": None, "volumes": None, "labels": None})  # a set is the same wherever it lies
    about = circumstances(experiment.model_copy(update={"data": placeless}))
    about["versions"] |= {name: version(name) for name in ("grain", "array-record", "numpy", "scipy")}
    return {
        "source": "shards" if records else next((name for name in ("volumes", "labels") if data[name]), "anatomy"),
        "subjects": len(subjects.ids),
        "slices": len(records) if records else None,
        "stored_bytes": stored if records else None,
        "page_cache": None if not records else "cold at the start of each run" if cold else "warm after the first pass",
        "batch_size": experiment.train.batch_size,
        "size": experiment.data.crop,
        "maps": ["high", "low", *experiment.data.maps],
        "augment": data["augment"],
        "cores": os.cpu_count(),
        "runs": runs,
        **about,
    }


def describe(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table for people."""
    of = f"{result['source']}: {result['subjects']} {'files' if result['slices'] else 'subjects'}"
    if result["slices"]:
        of += f", {result['slices']} slices, {quantity(result['stored_bytes'], 'B')}, page cache {result['page_cache']}"
    return [
        ("slices of", f"{result['size']} × {result['size']}: {', '.join(result['maps'])}, {result['batch_size']} a batch"),
        ("from", of),
        ("augmentation", str(result["augment"])),
        *((f"{run['workers']} workers", ", ".join(_phrases(run))) for run in result["runs"]),
        ("on", f"{result['cores']} cores ({result['processor']})"),
        ("with", ", ".join(f"{name} {number}" for name, number in result["versions"].items())),
        ("config", result["config_digest"]),
        ("date", result["date"]),
    ]


def _phrases(run: dict[str, Any]) -> list[str]:
    parts = run["slices_per_second_in_parts"]
    spread = f"quartiles of its tenths {parts['lower_quartile']:.4g} … {parts['upper_quartile']:.4g}"
    said = [f"{run['slices_per_second']:.4g} slices/s ({spread})", f"{quantity(run['bytes_per_second'], 'B/s')} decoded"]
    if "stored_bytes_per_second" in run:
        said.append(f"{quantity(run['stored_bytes_per_second'], 'B/s')} as stored")
    said.append(f"{run['cpu_share']:.2f} cores busy, {1000 * run['cpu_seconds_per_slice']:.3g} ms of a core a slice")
    if run["memory_bytes"]:
        said.append(f"memory {quantity(run['memory_bytes'], 'B', 1024)}, at most {quantity(run['peak_memory_bytes'], 'B', 1024)}")
    return [*said, f"first batch after {run['first_batch_seconds']:.2f} s"]


def resident_memory() -> int | None:
    """Bytes of this process that are in memory now; None where the system does not say (it is Linux that does)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _measure(stream: Stream, batch_size: int, workers: int, seconds: float) -> dict[str, Any]:
    """One batch that is not counted, then all that come in `seconds`: their rate, and its median and quartiles over `PARTS` of that time.

    `memory_bytes` is the median of what is held after each.
    """
    started = time.perf_counter()
    iterator = batches(stream, batch_size, threads=workers)
    try:
        next(iterator)
        start, cpu = time.perf_counter(), time.process_time()
        ends, size, held = [start], 0, []
        while ends[-1] - start < seconds:
            batch = next(iterator)
            size += sum(x.nbytes for x in batch.values())
            held.append(resident_memory())
            ends.append(time.perf_counter())
        busy = time.process_time() - cpu
    finally:
        iterator.close()
    taken, now = batch_size * (len(ends) - 1), ends[-1]
    known = [bytes_held for bytes_held in held if bytes_held is not None]
    return {
        "slices_per_second": taken / (now - start),
        "slices_per_second_in_parts": summary(_rates(ends, batch_size)),
        "bytes_per_second": size / (now - start),
        "cpu_share": busy / (now - start),
        "cpu_seconds_per_slice": busy / taken,
        "memory_bytes": int(np.median(known)) if known else None,
        "peak_memory_bytes": max(known, default=None),
        "first_batch_seconds": start - started,
        "seconds": now - start,
    }


def _rates(ends: Sequence[float], batch_size: int) -> list[float]:
    """Slices a second in each of `PARTS` equal parts of the time between the first and the last of `ends`, at each of which but the first a
    batch was there."""
    counts, edges = np.histogram(ends[1:], bins=PARTS, range=(ends[0], ends[-1]))
    return list(counts * batch_size / np.diff(edges))


def _forget(files: Sequence[Path]) -> None:
    """Has the kernel write `files` out and drop them from its page cache."""
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
