"""`jaxsr evaluate --labels`: label maps of outputs against those of references, label by label.

Whoever evaluates has made them, with one tool, from the outputs and from the truth. They are matched and their grids compared as images
are; nothing is interpolated and no intensity is looked at. Each label is the region of a row a subject and method; metrics: METRICS.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsr.evaluate.compare import Means, Progress, Scored, compare_subjects, paired
from jaxsr.evaluate.grids import EvaluationError, check_same_grid
from jaxsr.evaluate.heads import FEWEST, labelled
from jaxsr.evaluate.metrics import registry
from jaxsr.evaluate.tables import Comparison, Files, Row, listed
from jaxsr.files import shown
from jaxsr.volume.io import Volume, VolumeError, read_volume

METRICS = ("dice", "volume_error", "relative_volume_error")
ALL = "all"
LARGEST = 2**24  # below it float32, in which volumes are read, holds every whole number
WAY_OUT = "a label map is not interpolated here: segment on the reference's grid, or resample by nearest neighbours first"
_NUMBERS = re.compile(r"\d+(\s*,\s*\d+)*")


def compare_labels(
    outputs: Mapping[str, Path],
    reference: Path,
    out_dir: Path,
    labels: str = ALL,
    *,
    means: Means | None = None,
    progress: Progress = lambda done, total: None,
) -> Comparison:
    """Compares label maps, files or folders matched by name, and writes metrics.csv and metrics.json.

    Args:
      outputs: method → file or folder. reference: file or folder.
      labels: 'all', every one but 0 of any reference; numbers, '2,3,41'; or a table of BIDS (_dseg.tsv, columns index and name), of which
        those count that a reference has.
      means: `against` and `provenance` are taken from it.

    A subject that fails among several is left out and reported in `Comparison.failures`; where all fail, the first error is raised.

    Raises:
      EvaluationError: where nothing can be compared, or `labels` makes no sense. VolumeError: where a single map cannot be read.
    """
    means = (means or Means())._replace(montage=False)
    asked = parse_labels(labels)
    pairings = {method: paired(reference, path, method, labels=True) for method, path in outputs.items()}
    notes = [note for method, pairing in pairings.items() for note in pairing.notes(method)]
    subjects = dict.fromkeys(subject for pairing in pairings.values() for subject in pairing.matched)
    cases: dict[str, Files] = {}
    for subject in subjects:
        found = {method: pairing.matched[subject] for method, pairing in pairings.items() if subject in pairing.matched}
        cases[subject] = Files(next(iter(found.values()))[0], {method: output for method, (_, output) in found.items()})
    if means.against and means.against not in outputs:
        raise EvaluationError(f"--against {means.against}: no such method; there are {', '.join(outputs)}")
    there = _in_any(case.reference for case in cases.values())
    names, more = _chosen(labels, asked, there)
    one = partial(_compare_maps, labels=names, known=there if labels == ALL else ())
    several = len(cases) > 1 and len(outputs) > 1 and len(names) > 1
    more += [f"{len(names)} labels: Holm's correction runs over methods, not over labels; name the labels beforehand"] * several
    return compare_subjects(cases, out_dir, means, notes=notes + more, labels=names, one=one, progress=progress)


def parse_labels(text: str) -> dict[str, int] | None:
    """Name → number of the labels asked for, in that order; None for all. Raises EvaluationError for anything else than `text` may be."""
    if text == ALL:
        return None
    if _NUMBERS.fullmatch(text.strip()):
        numbers = [int(number) for number in text.split(",")]
        names = {str(number): number for number in numbers}
        if len(names) < len(numbers) or not all(0 < number < LARGEST for number in numbers):
            raise EvaluationError(f"--labels {text}: name each label once; they are above 0, which is the background, and below {LARGEST}")
        return names
    path = Path(text)
    if not path.is_file():
        raise EvaluationError(f"--labels {shown(text)}: neither all, nor numbers as in 2,3,41, nor a table (_dseg.tsv) that is there")
    return read_table(path)


def read_table(path: Path) -> dict[str, int]:
    """Name → number of a BIDS table of labels, tab-separated with columns index and name; without the background, 0.

    Raises:
      EvaluationError: where a column is missing, an index is no whole number, or a name or an index stands there twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{shown(path)} is no table of labels ({error}): give one with the columns index and name") from error
    names: dict[str, int] = {}
    for line, row in enumerate(rows, 2):
        index, name = (row.get(key) or "" for key in ("index", "name"))
        if "index" not in row or "name" not in row:
            raise EvaluationError(
                f"{shown(path)} has no columns index and name, separated by tabs, as a BIDS table of labels (_dseg.tsv) has"
            )
        if not re.fullmatch(r"\d+", index.strip()) or int(index) >= LARGEST:
            raise EvaluationError(f"{shown(path)}, line {line}: the index {shown(index)!r} is no whole number from 0 to {LARGEST - 1}")
        name = index.strip() if name.strip() in ("", "n/a") else shown(name.strip())
        if name in names or int(index) in names.values():
            raise EvaluationError(
                f"{shown(path)}, line {line}: {name} or {index.strip()} stands there twice, and rows go by it: use each once"
            )
        if int(index):
            names[name] = int(index)
    if not names:
        raise EvaluationError(f"{shown(path)} lists no label above 0: give a BIDS table of labels (_dseg.tsv)")
    return names


def read_labels(path: Path) -> Volume:
    """A label map: whole numbers from 0, below LARGEST.

    Raises:
      EvaluationError: for other numbers, or an image. VolumeError: as `read_volume`.
    """
    volume = read_volume(path, constant="allow")
    data = volume.data
    odd = data[(data != np.rint(data)) | (data < 0) | (data >= LARGEST)]
    if len(odd):
        raise EvaluationError(
            f"{shown(path)} is no label map: it holds {odd[0]:g} ({len(odd)} voxels), labels are whole numbers from 0, below {LARGEST}; "
            "give the segmentation itself, resampled by nearest neighbours where at all"
        )
    if len(_counts(data).nonzero()[0]) >= FEWEST and labelled(data) is None:
        raise EvaluationError(f"{shown(path)} looks like an image, its neighbouring voxels differ: --labels takes segmentations")
    return volume


def _in_any(references: Iterable[Path]) -> list[int]:
    """The labels but 0 of all references; one that cannot be used is told when its turn comes."""
    found: set[int] = set()
    for path in references:
        try:
            found.update(_present(read_labels(path)))
        except (EvaluationError, VolumeError):
            continue
    return sorted(found)


def _chosen(labels: str, asked: Mapping[str, int] | None, there: Sequence[int]) -> tuple[dict[str, int], list[str]]:
    """Name → number of the labels to be compared, and notes."""
    if asked is None:
        names, notes = {str(number): number for number in there}, []
    elif _NUMBERS.fullmatch(labels.strip()):
        names = dict(asked)
        gone = [number for number in names.values() if number not in there]
        notes = [f"no reference has {_labels(gone)}"] if gone else []
    else:
        names = {name: number for name, number in asked.items() if number in there}
        nameless = [number for number in there if number not in asked.values()]
        notes = [f"{_labels(nameless)} of the references: not in the table, not compared"] if nameless else []
    return names, notes


def _compare_maps(
    subject: str, case: Files, means: Means, picture: Path | None, *, labels: Mapping[str, int], known: Sequence[int]
) -> Scored:
    reference = read_labels(case.reference)
    if not labels:
        raise EvaluationError("no reference has any of the labels asked for: check the maps and --labels")
    truth, numbers = jnp.asarray(reference.data), tuple(labels.values())
    counts = _counts(reference.data)
    voxels = [int(counts[number]) if number < len(counts) else 0 for number in numbers]
    values: dict[str, dict[str, np.ndarray]] = {}
    notes = []
    for method, path in case.outputs.items():
        output = read_labels(path)
        check_same_grid(reference.grid, output.grid, f"{method} {shown(path)}", WAY_OUT)
        values[method] = dict(
            zip(METRICS, jax.device_get(_scores(jnp.asarray(output.data), truth, numbers, reference.voxel_size)), strict=True)
        )
        if known and (more := sorted(set(_present(output)) - set(known))):
            notes.append(f"{method} has {_labels(more)}, which no reference has: not compared")
    rows = [
        Row(subject, method, region, None, voxels[i], {name: float(numbers[i]) for name, numbers in found.items()})
        for i, region in enumerate(labels)
        for method, found in values.items()
    ]
    return Scored(rows, {}, None, notes)


@partial(jax.jit, static_argnames=("labels", "voxel_size"))  # together, so that voxels are counted once for all
def _scores(x: Array, y: Array, labels: tuple[int, ...], voxel_size: tuple[float, float, float]) -> list[Array]:
    """METRICS, each a value for each label."""
    given: dict[str, Any] = {"labels": labels, "voxel_size": voxel_size}
    metrics = [registry.METRICS[name] for name in METRICS]
    return [m.function(x, y, **{key: given[key] for key in m.needs}) for m in metrics]  # type: ignore[misc]


def _counts(data: np.ndarray) -> np.ndarray:
    """Voxels of label 0, 1, …"""
    return np.bincount(data.ravel().astype(np.int32))


def _present(volume: Volume) -> list[int]:
    """The labels above 0."""
    return [int(number) for number in _counts(volume.data).nonzero()[0] if number]


def _labels(numbers: Sequence[int]) -> str:
    return f"label{'s' * (len(numbers) > 1)} {listed([str(number) for number in numbers])}"
