"""Which file is compared with which."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxsr.files import shown
from jaxsr.volume.io import SUFFIXES

_DERIVED = ("desc", "res", "rec", "space", "den")  # BIDS entities in which a derivative differs from its source
_NOT_IMAGES = ("mask", "dseg", "probseg")
_MASK = re.compile(r"(?<![0-9A-Za-z])mask(?![0-9A-Za-z])", re.IGNORECASE)  # a word of the name: FreeSurfer's brainmask is an image
_MAP = re.compile(r"_desc-[0-9A-Za-z]*(?:std|consistency|sample[0-9]+)(?=_)")  # of an output: how sure it is, or one sample of several


@dataclass(frozen=True)
class Pairing:
    """`matched`: subject → (reference, partner); `missing`: references without a partner; `extra`: partners without a reference."""

    matched: dict[str, tuple[Path, Path]]
    missing: tuple[Path, ...]
    extra: tuple[Path, ...]

    def notes(self, method: str) -> list[str]:
        """At most two sentences, whatever the number of files."""

        def listed(paths: tuple[Path, ...]) -> str:
            return ", ".join(shown(p.name) for p in paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")

        said = [f"{method}: no output for {listed(self.missing)}"] if self.missing else []
        return said + ([f"{method}: no reference for {listed(self.extra)}"] if self.extra else [])


def pair_files(references: Path, others: Path, *, masks: bool = False, labels: bool = False, only: Sequence[Path] | None = None) -> Pairing:
    """Partners of `references` among `others`. Two files are a pair whatever they are called; in folders, searched with all their
    subfolders, names decide.

    Tried in turn, each only where it leaves no choice: the same path below the folder; the same name; the same BIDS name without desc-,
    res-, rec-, space-, den-; the same subject, session, run and suffix; the same subject and session; a name that goes on after the
    reference's ('head01_sr' for 'head01').

    masks: where any of `others` is called a mask, only those are taken; no reference is its own.
    labels: both sides are label maps (`label_files`).
    only: of the files in `references` these, whatever else lies there.
    """
    if references.is_file() and others.is_file():
        return Pairing({shown(subject_name(references)): (references, others)}, (), ())
    left = {p: _relative(p, references) for p in only or (label_files if labels else volume_files)(references)}
    right = {p: _relative(p, others) for p in (label_files(others) if labels else volume_files(others, masks=masks))}
    if masks:
        own = {p.resolve() for p in left}
        named = {p: relative for p, relative in right.items() if _MASK.search(stem(p))}
        right = named or {p: relative for p, relative in right.items() if p.resolve() not in own}
    pairs: dict[Path, Path] = {}
    for key in (lambda p, relative: relative, lambda p, relative: stem(p), _bids_name, _bids_image, _bids_subject):
        for reference, partner in _unique_matches(left, right, key):
            pairs[reference] = partner
            del left[reference], right[partner]
    for reference in sorted(left, key=lambda p: len(stem(p)), reverse=True):  # scan_2_bias is that of scan_2, not of scan
        longer = [p for p in right if re.match(re.escape(stem(reference)) + r"[^0-9A-Za-z]", stem(p))]
        if len(longer) == 1:
            pairs[reference] = longer[0]
            del left[reference], right[longer[0]]
    names = subjects_of(sorted(pairs), references)
    return Pairing({names[r]: (r, pairs[r]) for r in sorted(pairs)}, tuple(sorted(left)), tuple(sorted(right)))


def volume_files(path: Path, *, masks: bool = False) -> list[Path]:
    """The volume itself, or every volume below a folder but hidden ones, maps that belong to an output (`is_map`) and, unless asked for,
    masks and segmentations."""
    if path.is_file():
        return [path]
    found = (p for p in path.rglob("*") if p.name.lower().endswith(SUFFIXES) and not p.name.startswith(".") and p.is_file())
    return sorted(p for p in found if (masks or not stem(p).endswith(_NOT_IMAGES)) and not is_map(p))


def label_files(path: Path) -> list[Path]:
    """The label map itself, or those below a folder: what is called dseg where anything is, otherwise all but masks and probabilities, or
    masks where there is nothing else."""
    files = [p for p in volume_files(path, masks=True) if not stem(p).endswith("probseg")]
    named = [p for p in files if stem(p).endswith("dseg")]
    return named or [p for p in files if not stem(p).endswith("mask")] or files


def is_map(path: Path) -> bool:
    """Whether a volume is a standard deviation, a consistency map or a single sample that lies beside an output.

    Its name says so in desc-, or its sidecar does, under JaxSR, Map.
    """
    ours = _json(sidecar_path(path)).get("JaxSR")
    return bool(_MAP.search(stem(path))) or (isinstance(ours, dict) and "Map" in ours)


def stem(path: Path) -> str:
    """The name without what says its format."""
    name = path.name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def sidecar_path(path: Path) -> Path:
    """The JSON file that belongs to a volume: `scan.nii.gz` → `scan.json`."""
    return path.with_name(stem(path) + ".json")


def named_source(output: Path, name: str) -> Path:
    """The file that a sidecar of `output` names under Sources: a path from its folder, an absolute one, or a BIDS URI (`bids:SET:PATH`, SET
    a key of DatasetLinks, or empty for its own set)."""
    if not name.startswith("bids:"):
        return output.parent / name
    link, _, path = name.removeprefix("bids:").partition(":")
    root = next((folder for folder in output.resolve().parents if (folder / "dataset_description.json").is_file()), output.parent)
    linked = _json(root / "dataset_description.json").get("DatasetLinks") if link else None
    return root / (str(linked.get(link, link)) if isinstance(linked, dict) else "") / path


def source_of(outputs: list[Path]) -> tuple[Path | None, list[str]]:
    """The input that the first sidecar to name one names, and what is to be said where there is none.

    Of several Sources the first counts; how it is found says `named_source`.
    """
    for output in outputs:
        source = _first_source(output)
        if not source:
            continue
        path = _located(output, source)
        if path.is_file():
            return path, []
        return None, [
            f"interpolations are left out: the input {shown(source)}, named in {shown(sidecar_path(output).name)}, is not there; "
            "give it with --low"
        ]
    return None, ["interpolations are left out: no input is given or named in a sidecar JSON; give it with --low"]


def differing_sources(outputs: Mapping[str, Path]) -> str:
    """'a of low2/x.nii.gz, b of low4/x.nii.gz' where the sidecars of `outputs` (method → file) name different inputs, otherwise ''."""
    found: dict[Path, list[str]] = {}
    for method, output in outputs.items():
        if source := _first_source(output):
            path = _located(output, source)
            found.setdefault(path.resolve() if path.is_file() else Path(os.path.abspath(path)), []).append(method)
    if len(found) < 2:
        return ""
    above = os.path.commonpath([path.parent for path in found])
    return ", ".join(f"{' and '.join(methods)} of {shown(os.path.relpath(path, above))}" for path, methods in found.items())


def subject_name(path: Path) -> str:
    """'sub-01' or 'sub-01_ses-2' for BIDS names, otherwise the name without its suffix."""
    return _bids_subject(path, "") or stem(path)


def subjects_of(paths: list[Path], root: Path) -> dict[Path, str]:
    """A name for each of the volumes below `root`: the shortest of subject, name and path from there that tells all apart; never an
    absolute path, as outputs are called after it."""
    for name in (subject_name, stem, lambda p: _relative(p, root)):
        names = {p: shown(name(p)) for p in paths}
        if len(set(names.values())) == len(names):
            return names
    return {p: shown(p.name if p == root else p.relative_to(root).as_posix()) for p in paths}


def _first_source(output: Path) -> str:
    sources = _json(sidecar_path(output)).get("Sources")
    return str(sources[0] if isinstance(sources, list) else sources) if sources else ""


def _located(output: Path, source: str) -> Path:
    """Where `named_source` is, or the path from here, if that is there instead."""
    path = named_source(output, source)
    return Path(source) if not path.is_file() and Path(source).is_file() else path


def _json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _unique_matches(left: dict[Path, str], right: dict[Path, str], key: Callable[[Path, str], str]) -> Iterable[tuple[Path, Path]]:
    mine, theirs = _by_key(left, key), _by_key(right, key)
    return [(mine[k][0], theirs[k][0]) for k in mine if k and len(mine[k]) == 1 and len(theirs.get(k, ())) == 1]


def _by_key(files: dict[Path, str], key: Callable[[Path, str], str]) -> dict[str, list[Path]]:
    grouped: dict[str, list[Path]] = {}
    for path, relative in files.items():
        grouped.setdefault(key(path, relative), []).append(path)
    return grouped


def _relative(path: Path, root: Path) -> str:
    return stem(path) if path == root else (path.relative_to(root).parent / stem(path)).as_posix()


def _bids_name(path: Path, _: str) -> str:
    return "_".join(part for part in stem(path).split("_") if not part.startswith(tuple(f"{entity}-" for entity in _DERIVED)))


def _bids_image(path: Path, _: str) -> str:
    parts = stem(path).split("_")
    return "_".join([p for p in parts[:-1] if p.startswith(("sub-", "ses-", "run-"))] + parts[-1:]) if parts[0].startswith("sub-") else ""


def _bids_subject(path: Path, _: str) -> str:
    parts = stem(path).split("_")
    return "_".join(p for p in parts if p.startswith(("sub-", "ses-"))) if parts[0].startswith("sub-") else ""
