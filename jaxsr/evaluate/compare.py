"""`jaxsr evaluate`: outputs against references, every interpolation of the same input beside them.

Before a number is formed, the grids are compared in scanner space, so the orientation a file was stored in does not matter and a shifted or
rescaled output is refused rather than scored, or resampled where that is asked for. How volumes become numbers stands in scores.py, what
numbers of several subjects say in statistics.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxsr.evaluate.files import Pairing, differing_sources, pair_files, source_of
from jaxsr.evaluate.grids import EvaluationError, Resampling, check_same_grid, on_grid, read_mask, region_of
from jaxsr.evaluate.interpolation import INTERPOLATIONS, interpolate
from jaxsr.evaluate.montage import save_montage
from jaxsr.evaluate.scores import RULES, Rules, score
from jaxsr.evaluate.tables import Comparison, Files, Row, write_tables
from jaxsr.evaluate.written import check_folder, picture_paths
from jaxsr.files import shown
from jaxsr.volume.io import Volume, VolumeError, read_volume

Progress = Callable[[int, int], None]  # subjects done, subjects in all

AGAINST = "tricubic"  # whom others are tested against: one choice for all studies, made before their numbers are seen


class Means(NamedTuple):
    """What `compare_subjects` is told beside the files.

    Attributes:
      resampling: how an output, mask or grid that differs from the reference's is brought to it; None: it is refused.
      against: the method that others are tested against; None: AGAINST, or the first method where that is not scored.
      montage: pictures are drawn.
      protocol, provenance: for metrics.json, as they are.
    """

    rules: Rules = RULES
    resampling: Resampling | None = None
    against: str | None = None
    montage: bool = True
    protocol: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = {}


def compare_volumes(
    reference: Volume, candidates: Mapping[str, Volume], mask: np.ndarray | None = None, *, subject: str = "", rules: Rules = RULES
) -> list[Row]:
    """Rows for each of `candidates` (method → volume): over the whole image, and over `mask` (by default the reference's foreground).

    Raises:
      EvaluationError: where a candidate does not lie on the reference's grid, or the mask is empty or of another shape.
    """
    for method, candidate in candidates.items():
        check_same_grid(reference.grid, candidate.grid, f"{method} {candidate.path or ''}".strip())
    return score(reference, candidates, region_of(reference, mask), _named(mask), subject, rules)[0]


def compare_files(
    outputs: Mapping[str, Path],
    reference: Path,
    out_dir: Path,
    *,
    low: Path | None = None,
    mask: Path | None = None,
    means: Means = Means(),
    progress: Progress = lambda done, total: None,
) -> Comparison:
    """Compares files, or folders matched by name (`jaxsr.evaluate.files.pair_files`), and writes metrics.csv, metrics.json and montages.

    Args:
      outputs: method → file or folder; several methods stand side by side.
      reference: file or folder.
      low: the low-resolution input, file or folder, whose interpolations are scored too. By default what the outputs' sidecar JSON
        files name first under Sources, where it can be found.
      mask: file or folder on the references' grids.

    A subject that fails among several is left out and reported in `Comparison.failures`; where all fail, the first error is raised.

    Raises:
      EvaluationError: where nothing can be compared. VolumeError: where a single input cannot be read.
    """
    pairings = {method: paired(reference, path, method) for method, path in outputs.items()}
    inputs = {} if low is None else paired(reference, low, "the input").matched
    masks = {} if mask is None else paired(reference, mask, "the mask", masks=True).matched
    subjects = list(dict.fromkeys(s for pairing in pairings.values() for s in pairing.matched))
    notes = [note for method, pairing in pairings.items() for note in pairing.notes(method)]
    cases: dict[str, Files] = {}
    failures: dict[str, str] = {}
    for subject in subjects:
        found = {method: pairing.matched[subject] for method, pairing in pairings.items() if subject in pairing.matched}
        if low is not None and subject not in inputs:
            failures[subject] = f"{subject}: no input for it in {low}: add it, or leave --low out"
        elif mask is not None and subject not in masks:
            failures[subject] = f"{subject}: no mask for it in {mask}: add it, or leave --mask out"
        else:
            files = {method: output for method, (_, output) in found.items()}
            at = next(iter(found.values()))[0]
            cases[subject] = Files(at, files, inputs[subject][1] if low else None, masks[subject][1] if mask else None)
    if not cases:
        raise EvaluationError(next(iter(failures.values())))
    return compare_subjects(cases, out_dir, means, notes=notes, failures=failures, progress=progress)


def compare_subjects(
    cases: Mapping[str, Files],
    out_dir: Path,
    means: Means = Means(),
    *,
    notes: Sequence[str] = (),
    failures: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
    labels: Mapping[str, int] | None = None,
    one: Callable[[str, Files, Means, Path | None], "Scored"] | None = None,
    progress: Progress = lambda done, total: None,
) -> Comparison:
    """Scores subject → files, one subject in memory at a time, and writes the tables; `notes`, `failures` and `left_out` join its own.

    Args:
      labels: region → label, where the files are label maps; one: what scores a subject then (labels.py).

    Raises: as `compare_files`; FileError where a file in `out_dir` would be replaced that is no evaluation's;
    EvaluationError also where no method goes by the name `means.against`.
    """
    known = dict.fromkeys(method for case in cases.values() for method in case.outputs)
    if means.against and means.against not in (*INTERPOLATIONS, *known):
        raise EvaluationError(f"--against {means.against}: no such method; there are {', '.join((*INTERPOLATIONS, *known))}")
    single = len(cases) + len(failures or {}) == 1
    places = picture_paths(out_dir, cases, single) if means.montage else {}
    check_folder(out_dir, places.values())
    rows: list[Row] = []
    said, failed = list(notes), dict(failures or {})
    sources: dict[str, Files] = {}
    curves: dict[str, Any] = {}
    pictures: list[Path] = []
    for done, (subject, case) in enumerate(cases.items()):
        progress(done, len(cases))
        picture = places.get(subject)
        try:
            scored = (one or _compare_subject)(subject, case, means, picture)
        except (EvaluationError, VolumeError) as error:
            if single:
                raise
            failed[subject] = str(error)
            continue
        rows += scored.rows
        said += [f"{subject}: {note}" for note in scored.notes]
        sources[subject] = case._replace(low=scored.low)
        if scored.curves:
            curves[subject] = scored.curves
        pictures += [] if picture is None else [picture]
    progress(len(cases), len(cases))
    if not rows:
        raise EvaluationError(next(iter(failed.values())))
    said += _several_of_one(list(sources))
    methods = dict.fromkeys(row.method for row in rows)
    against = means.against or (AGAINST if AGAINST in methods else next(iter(methods)))
    lpips = {"lpips": means.rules.lpips.facts} if means.rules.lpips else {}
    provenance = {**means.provenance, **lpips, **({"resampling": means.resampling} if means.resampling else {}), "against": against}
    comparison = Comparison(
        tuple(rows),
        tuple(said),
        failed,
        tuple(pictures),
        against=against,
        data_range=None if labels else means.rules.data_range,
        labels=labels or {},
        left_out=left_out or {},
        sources=sources,
        curves=curves,
        protocol=means.protocol,
        provenance=provenance,
    )
    return replace(comparison, files=(*write_tables(comparison, out_dir), *pictures))


def _several_of_one(subjects: list[str]) -> list[str]:
    """A sentence where names, by BIDS, say that several images are of one person."""
    people = {subject.split("_")[0] for subject in subjects}
    if len(people) == len(subjects) or not all(person.startswith("sub-") for person in people):
        return []
    return [dependence(len(subjects), len(people))]


def dependence(images: int, people: int) -> str:
    """What is to be said where several images are of one person."""
    said = "one person" if people == 1 else f"{people} people"
    return (
        f"{images} images are of {said}: intervals and tests take images for independent, which those of one person are not, "
        "so they look surer than they are; give one image of each"
    )


class Scored(NamedTuple):
    rows: list[Row]
    curves: dict[str, Any]
    low: Path | None
    notes: list[str]


def _compare_subject(subject: str, case: Files, means: Means, picture: Path | None) -> Scored:
    reference = read_volume(case.reference)
    notes: list[str] = []
    candidates = {method: on_grid(reference, path, method, means.resampling, notes) for method, path in case.outputs.items()}
    inside = None
    if case.mask is not None:
        inside = read_mask(case.mask, case.reference, reference, means.resampling, notes)
    source = case.low
    if source is None:
        source, why = source_of(list(case.outputs.values()))
        notes += why
        if source is not None and source.samefile(case.reference):
            source = None
            notes.append("interpolations are left out, the outputs were made from the reference itself: name a scan of it with --low")
    baselines: dict[str, Volume] = {}
    if source is not None:
        try:
            given = read_volume(source)
            baselines = {name: interpolate(given, reference.grid, name) for name in INTERPOLATIONS}
        except ValueError as error:  # VolumeError, or axes that are not parallel
            if case.low is not None:
                raise EvaluationError(f"{source} cannot be interpolated to the reference's grid: {error}") from error
            source = None
            notes.append(f"interpolations are left out, {error}")
    if made := differing_sources(case.outputs):
        whose = "" if source is None else f"; the interpolations are of {shown(source)}, so only methods made of that compare with them"
        notes.append(f"the outputs were made of different inputs, {made}{whose}")

    everything = {**baselines, **candidates}
    region = region_of(reference, inside)
    rows, curves = score(reference, everything, region, _named(inside), subject, means.rules)
    if picture is not None:
        _draw(picture, subject, reference, everything, region, rows)
    return Scored(rows, curves, source, notes)


def _named(mask: np.ndarray | None) -> str:
    return "foreground" if mask is None else "mask"


def _draw(picture: Path, subject: str, reference: Volume, volumes: Mapping[str, Volume], region: np.ndarray, rows: list[Row]) -> None:
    places = {row.region: {r.method: r for r in rows if r.region == row.region} for row in rows}
    place, inside = next((item for item in places.items() if item[0] != "image"), next(iter(places.items())))
    words = {"psnr": "{:.2f} dB", "ssim": "SSIM {:.4f}"}
    size = " × ".join(f"{mm:.3g}" for mm in reference.voxel_size)
    save_montage(
        picture,
        {method: volume.data for method, volume in volumes.items()},
        reference.data,
        voxel_size=reference.voxel_size,
        foreground=region,
        captions={
            method: "   ".join(text.format(row.values[metric]) for metric, text in words.items() if metric in row.values)
            for method, row in inside.items()
        },
        title=f"{subject}   {size} mm   {'whole image' if place == 'image' else f'inside the {place}'}",
    )


def paired(reference: Path, other: Path, name: str, *, masks: bool = False, labels: bool = False) -> Pairing:
    """`pair_files`, with names for errors. Raises EvaluationError where a path is not there, or nothing is a pair."""
    for path in (reference, other):
        if not path.exists():
            raise EvaluationError(f"{shown(path)} does not exist: check the path")
    pairing = pair_files(reference, other, masks=masks, labels=labels)
    if not pairing.matched:
        raise EvaluationError(
            f"{name}: no file in {other} belongs to one in {reference} by its name "
            f"({len(pairing.extra)} and {len(pairing.missing)} volumes found): name them alike, or give two files"
        )
    return pairing
