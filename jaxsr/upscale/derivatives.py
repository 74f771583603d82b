"""`jaxsr upscale --bids`: a BIDS set in, a BIDS derivative out.

    IN/sub-01/[ses-1/]anat/sub-01[_ses-1][_acq-…][_run-…]_T1w.nii.gz
    OUT/sub-01/[ses-1/]anat/sub-01[_ses-1][_acq-…][_run-…]_res-0p7mm_desc-sr_T1w.nii.gz, .json     and its maps, desc-srstd and so on

A derivative keeps the entities of its source and must not keep its name; desc- tells it apart, res- its voxel size, which may be another
next time. There is no suffix for a standard deviation, so desc- says that as well [BIDS 1.10, "Derivatives"]. Needs no JAX.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import jaxsr
from jaxsr.data.layouts.bids import bidsignore, never
from jaxsr.data.layouts.entities import Named, parse
from jaxsr.data.layouts.tree import look
from jaxsr.evaluate.files import sidecar_path
from jaxsr.files import shown, write_text
from jaxsr.upscale.inputs import Derivative, Job
from jaxsr.upscale.sidecar import write_json
from jaxsr.volume.io import VolumeError

DESCRIPTION = "dataset_description.json"
_BEHIND = ("den", "label")  # entities that stand behind res-, before desc-
_KEPT = ("SkullStripped", "SpatialReference")  # of the source's sidecar: as true of the output
_README = """\
Brain MRI, upscaled by jaxsr {version} from the set that {description} names under DatasetLinks.

These volumes are synthetic: a generative model made them. Structures may be invented or lost. For research only, not for diagnosis.

sub-*/[ses-*/]anat/*_desc-sr_*            upscaled; res- is the voxel size; where several samples were asked for, their mean
                   *_desc-srstd_*         standard deviation of the samples, in the units of the scan
                   *_desc-srconsistency_* the upscaled volume, degraded as the scan was acquired, less the scan, over the scan's noise
                   *_desc-srsample*_*     single samples
                   *.json                 what made each: model, SHA-256 of its weights, seed, settings
                   *.png                  input, cubic interpolation and output side by side (named in .bidsignore)
"""


def find_scans(root: Path, out: Path, participants: Sequence[str], sessions: Sequence[str], suffixes: Sequence[str]) -> list[Named]:
    """Scans in anat/ of the set itself, not of derivatives in it, by participant and session (without sub-, ses-; none: all) and suffix.

    Raises:
      VolumeError: where `root` is no BIDS set, a participant or session has no such scan, or `out` is no place for a derivative of it.
    """
    _source_description(root)
    _check_place(root, out)
    tree = look(root, (".nii", ".nii.gz"))
    ignored = bidsignore(root)
    # What cannot be read (empty, a pointer) is a scan too, and fails as one.
    paths = {*tree.files, *(PurePosixPath(problem.path) for problem in tree.problems if problem.kind != "ignored")}
    scans = [named for path in sorted(paths) if (named := parse(path)) and not ignored(path) and _is_scan(named, suffixes)]
    for key, wanted in (("sub", participants), ("ses", sessions)):
        labels = {label.removeprefix(f"{key}-") for label in wanted}
        there = {named.entities.get(key, "") for named in scans}
        if missing := sorted(labels - there):
            has = ", ".join(f"{key}-{label}" for label in sorted(there) if label) or "none"
            raise VolumeError(f"{shown(root)}: no {key}-{missing[0]} with {' or '.join(suffixes)} in anat/; there is {has}")
        scans = [named for named in scans if not labels or named.entities.get(key, "") in labels]
    return scans


def derivative_jobs(root: Path, out: Path, scans: Sequence[Named], to_mm: float) -> list[Job]:
    """A job for each scan. Raises VolumeError where two would go to one place."""
    raw = _source_description(root).get("DatasetType", "raw") == "raw"
    jobs = [
        Job(
            root / scan.path,
            out / scan.path.parent / output_name(scan, to_mm),
            Derivative(out, f"bids:raw:{scan.path}", _keys(root, scan, raw)),
        )
        for scan in scans
    ]
    taken: dict[Path, Path] = {}
    for job in jobs:
        if (other := taken.setdefault(job.output, job.source)) != job.source:
            raise VolumeError(f"{shown(other)} and {shown(job.source)} would both be written to {shown(job.output)}: keep one of them")
    return jobs


def output_name(scan: Named, to_mm: float) -> str:
    """`sub-1_T1w.nii.gz` at 0.7 mm → `sub-1_res-0p7mm_desc-sr_T1w.nii.gz`; labels are of letters and digits."""
    before = {key: value for key, value in scan.entities.items() if key not in (*_BEHIND, "res", "desc")}
    behind = {key: value for key, value in scan.entities.items() if key in _BEHIND}
    res, desc = f"{to_mm:g}mm".replace(".", "p"), scan.entities.get("desc", "") + "sr"
    words = [f"{key}-{value}" for key, value in {**before, "res": res, **behind, "desc": desc}.items()]
    return "_".join([*words, scan.suffix]) + ".nii.gz"


def start_derivative(root: Path, out: Path) -> None:
    """Writes what makes `out` a derivative of `root`, where it is not there yet.

    Raises:
      VolumeError: where `out` is another pipeline's, or of another set.
    """
    source, path = _source_description(root), out / DESCRIPTION
    link = Path(os.path.relpath(root.resolve(), out.resolve())).as_posix()
    if path.exists():
        _check_own(path, link)
    else:
        facts = {
            "Name": f"{source.get('Name') or 'Brain MRI'}, upscaled by jaxsr",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            **({"License": source["License"]} if source.get("License") else {}),
            "GeneratedBy": [
                {"Name": "jaxsr", "Version": jaxsr.__version__, "Description": "Brain MRI super-resolution; volumes are synthetic."}
            ],
            "SourceDatasets": [{"URL": link, **{key: source[f"Dataset{key}"] for key in ("DOI",) if source.get(f"Dataset{key}")}}],
            "DatasetLinks": {"raw": link},
        }
        write_json(path, facts)
    for name, text in (("README", _README.format(version=jaxsr.__version__, description=DESCRIPTION)), (".bidsignore", "*.png\n")):
        if not (out / name).exists():
            write_text(out / name, text)


def _is_scan(named: Named, suffixes: Sequence[str]) -> bool:
    return named.section == "" and named.datatype == "anat" and named.suffix in suffixes and not never(named)


def _keys(root: Path, scan: Named, raw: bool) -> dict[str, Any]:
    """What BIDS wants of an image's derivative that is known of its source: a raw image has its skull."""
    try:
        said = json.loads(sidecar_path(root / scan.path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        said = {}
    kept = {key: said[key] for key in _KEPT if isinstance(said, dict) and key in said}
    return {"SkullStripped": False, **kept} if raw else kept


def _source_description(root: Path) -> dict[str, Any]:
    path = root / DESCRIPTION
    try:
        said = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise VolumeError(f"{shown(root)} is no BIDS set, it has no {DESCRIPTION} that can be read: name the set's root") from error
    if not isinstance(said, dict):
        raise VolumeError(f"{shown(path)} holds no JSON object: correct it")
    return said


def _check_place(root: Path, out: Path) -> None:
    source, place = root.resolve(), out.resolve()
    if source == place:
        raise VolumeError(f"{shown(out)}: the output is the input; choose another place, as in {shown(root / 'derivatives' / 'jaxsr')}")
    if place.is_relative_to(source) and place.relative_to(source).parts[0] != "derivatives":
        raise VolumeError(f"{shown(out)} lies in the set itself: choose {shown(root / 'derivatives' / 'jaxsr')}, or a place outside it")
    if place.parent.name == "derivatives" and "jaxsr" not in place.name:
        raise VolumeError(f"{shown(out)}: BIDS wants the pipeline's name in a folder below derivatives/: jaxsr, or jaxsr-{place.name}")
    if (out / DESCRIPTION).exists():
        _check_own(out / DESCRIPTION, Path(os.path.relpath(source, place)).as_posix())


def _check_own(path: Path, link: str) -> None:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        ours = said["GeneratedBy"][0]["Name"] == "jaxsr"
        linked = said["DatasetLinks"]["raw"]
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        ours, linked = False, ""
    if not ours:
        raise VolumeError(f"{shown(path)} was not written by jaxsr: choose another place for the derivative")
    if linked != link:
        raise VolumeError(
            f"{shown(path)} names another set ({shown(linked)}) as its source: choose another place for this one's derivative"
        )
