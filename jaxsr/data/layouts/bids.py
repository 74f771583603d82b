"""The layout `bids`: raw data sets and derivatives of the Brain Imaging Data Structure.

    ROOT/sub-01/[ses-1/]anat/sub-01[_ses-1][_acq-…][_run-…]_T1w.nii.gz
    ROOT/derivatives/PIPELINE/sub-01/[ses-1/]anat/sub-01[_ses-1]…_desc-brain_mask.nii.gz, …_dseg.nii.gz

Rules, in the order in which they are applied:

1. Never taken: other parts than the magnitude (part-phase, -real, -imag), defacing masks, what .bidsignore names, what lies in sourcedata/
   or in another folder than anat/.
2. A truth is a file of the suffix `high` that `high_in` takes. Without `high_in` it is one of the set itself (of a pipeline only where
   the set is a derivative), and of several forms of one image (desc-, space-, res-) that without desc-, else the first. Of several echoes
   the first. Each run, session and acquisition is a scan of its own.
3. Its partner on the low side has the suffix `low` (default: that of `high`), is taken by `low_in` and is not a truth; the reference has
   the suffix `reference` and is neither. Both are of the same person and session, but a low side of another session if `ses-` tells the
   sides apart. Of several the one with most entities in common is taken, then the nearest run, then the first by name.
4. A scan without a partner that is wanted is left out. A mask (`desc-brain_mask`, else `label-brain_mask`, else `mask`) and labels
   (`dseg`) of the same person, session and space, whose other entities are the truth's too, are added where they are; of several
   those of the truth's own pipeline, then the first. They are taken to lie where the truth lies in scanner space.
"""

import fnmatch
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from jaxsr.data.layouts.base import Found, Wanted
from jaxsr.data.layouts.entities import OUTSIDE, Filter, Named, parse, parse_filter
from jaxsr.data.layouts.tree import Account, look
from jaxsr.data.tables import read_table
from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError

_FORMS = ("desc", "space", "res", "den")  # entities of derivatives: forms of one image
_MASKS = (("desc", "brain"), ("label", "brain"))


class Bids:
    """A BIDS set. `wanted.high`, `low`, `reference` are suffixes (T1w, T2w, PDw, FLAIR, UNIT1, …); `high_in`, `low_in` are entities or a
    pipeline, see `entities.parse_filter`. Default of `high`: the first of `suffixes` that the set has.
    """

    def __init__(self, suffixes: Sequence[str] = ("T1w", "UNIT1", "T2w", "PDw", "FLAIR"), labels: str = "") -> None:
        """`labels`: the desc- of labels that are preferred to others."""
        self._suffixes, self._labels = suffixes, labels

    def find(self, root: Path, wanted: Wanted) -> Found:
        account = Account(look(root))
        ignored = bidsignore(root)
        derivative = _description(root, account)
        files = []
        for path in account.files:
            named = parse(path)
            if named is None:
                account.refuse(path, "unused", "its name is none of BIDS (sub-LABEL[_key-value…]_suffix)")
            elif ignored(path):
                account.refuse(path, "ignored", ".bidsignore names it")
            elif named.datatype in ("anat", "") and named.section not in OUTSIDE:
                if why := never(named):
                    account.refuse(path, "unused", why)
                else:
                    files.append(named)
        high_in, low_in = parse_filter(wanted.high_in, "high_in"), parse_filter(wanted.low_in, "low_in")
        there = {file.suffix for file in files}
        high = wanted.high or next((suffix for suffix in self._suffixes if suffix in there), self._suffixes[0])
        low = wanted.low or (high if wanted.low_in else None)
        if low == high and wanted.high_in is None and wanted.low_in is None:
            raise VolumeError(
                f"{shown(root)}: high and low are both {high}: tell them apart by high_in or low_in, as in high_in='acq-highres'"
            )
        truths = [
            f for f in files if f.suffix == high and high_in.takes(f) and not (low == high and not wanted.high_in and low_in.takes(f))
        ]
        truths = self._one_form(account, truths, high_in, derivative)
        taken = {f.path for f in truths}
        lows = [f for f in files if f.suffix == low and low_in.takes(f) and f.path not in taken]
        if low == high and wanted.low_in is None:  # high_in alone tells them apart
            lows = [f for f in lows if not high_in.takes(f)]
        if low:
            lows = self._one_form(account, lows, low_in, derivative)
        taken |= {f.path for f in lows}
        references = [f for f in files if f.suffix == wanted.reference and f.path not in taken]
        form = Filter({key: value for key, value in high_in.entities.items() if key in _FORMS}, high_in.section)
        references = self._one_form(account, references, form, derivative)
        free = set(high_in.entities) | set(low_in.entities)
        sides: dict[str, tuple[str, list[Named]]] = {}
        if low:
            sides["low"] = (f"{low} for the low side", lows)
        if wanted.reference:
            sides["reference"] = (f"{wanted.reference} for reference", references)
        self._pair(account, truths, sides, free, files)
        self._people(account, root, files, high)
        return account.found(lambda path: _reason(path, high, wanted.high_in))

    def _one_form(self, account: Account, files: list[Named], by: Filter, derivative: bool) -> list[Named]:
        """Of several forms or echoes of one image one; the others are refused."""
        if by.section is None and not derivative and not set(by.entities) & set(_FORMS):
            files = [file for file in files if not file.section]
        images: dict[tuple[str, ...], list[Named]] = defaultdict(list)
        for file in files:
            own = (f"{k}-{v}" for k, v in file.entities.items() if k not in _FORMS and k != "echo")
            images[(str(file.path.parent), *sorted(own))].append(file)
        kept = []
        for same in images.values():
            first, *others = sorted(same, key=lambda f: (self._further(f, by), _number(f.entities.get("echo")), f.path))
            kept.append(first)
            for other in others:
                account.refuse(other.path, "duplicate", f"another echo or form of {shown(first.path.name)}, which was taken")
        return sorted(kept, key=lambda f: f.path)

    def _further(self, file: Named, by: Filter) -> tuple[bool, int]:
        """How far a form is from the image itself, or from what was asked for."""
        own = fnmatch.fnmatchcase(file.entities.get("desc", ""), by.entities.get("desc", ""))
        return not own, len((set(_FORMS) & set(file.entities)) - set(by.entities))

    def _pair(
        self, account: Account, truths: list[Named], sides: dict[str, tuple[str, list[Named]]], free: set[str], files: list[Named]
    ) -> None:
        theirs = {role: _by_person(candidates) for role, (_, candidates) in sides.items()}
        maps = _by_person([file for file in files if file.suffix in ("mask", "dseg")])
        chosen: set[PurePosixPath] = set()
        for truth in truths:
            partners, lacking = {}, []
            for role, (name, _) in sides.items():
                candidates = theirs[role][truth.person]
                # The reference belongs to the truth: only the low side may be in another session.
                near = [c for c in candidates if c.session == truth.session or (role == "low" and "ses" in free)]
                if near:
                    partners[role] = min(near, key=lambda c: _distance(truth, c, free))
                else:
                    elsewhere = sorted({f"ses-{c.session}" if c.session else "no session" for c in candidates})
                    lacking.append(f"no {name} in the same session" + (f", only in {', '.join(elsewhere)}" if elsewhere else ""))
            if lacking:
                account.refuse(truth.path, "partner", f"there is {' and '.join(lacking)}")
                continue
            paths = {role: partner.path for role, partner in partners.items()}
            chosen.update(paths.values())
            account.scan(truth.name, truth.person, {"high": truth.path, **paths, **self._maps(truth, maps[truth.person])})
        people, scanned = {truth.person for truth in truths}, {draft.person for draft in account.drafts}
        for name, candidates in sides.values():
            for other in candidates:
                if other.path in chosen:
                    continue
                if other.person not in people:
                    account.refuse(other.path, "partner", f"{name}, and {other.person} has no truth")
                elif other.person not in scanned:
                    account.refuse(other.path, "partner", f"{name}, and the truth of {other.person} lacks another partner")
                else:
                    account.refuse(other.path, "duplicate", f"{name}, and another is nearer to each truth of {other.person}")

    def _maps(self, truth: Named, files: list[Named]) -> dict[str, PurePosixPath]:
        found = {}
        for role, suffix in (("mask", "mask"), ("labels", "dseg")):
            fitting = [f for f in files if f.suffix == suffix and f.session == truth.session and _agree(f, truth)]
            if role == "mask":
                fitting = [
                    f for f in fitting if not ({"desc", "label"} & set(f.entities)) or any(f.entities.get(k) == v for k, v in _MASKS)
                ]
            if fitting:
                found[role] = min(fitting, key=lambda f: (f.section != truth.section, not self._prefers(role, f), _forms(f), f.path)).path
        return found

    def _prefers(self, role: str, file: Named) -> bool:
        return file.entities.get("desc", "") == ("brain" if role == "mask" else self._labels)

    def _people(self, account: Account, root: Path, files: list[Named], high: str) -> None:
        """Who is listed, who is there, and who has no truth."""
        suffixes: dict[str, set[str]] = defaultdict(set)
        for file in map(parse, account.files):
            if file and not file.section:
                suffixes[file.person].add(file.suffix)
        there = set(suffixes)
        there |= {path.name for path in root.glob("sub-*") if path.is_dir()}
        spoken = {draft.person for draft in account.drafts} | {f.person for f in files if f.suffix == high}
        for person in sorted(there - spoken):
            has = sorted(suffixes[person])
            account.note(person, f"has no {high}, only {', '.join(has[:6])}" if has else "has no volume that can be read", "partner")
        table = root / "participants.tsv"
        if not table.is_file():
            return
        try:
            rows = read_table(table)
        except VolumeError as error:
            account.note(table.name, str(error))
            return
        names = {row.get("participant_id", "") for row in rows} - {""}
        listed = {name if name.startswith("sub-") else f"sub-{name}" for name in names}
        for person in sorted(listed - there):
            account.note(person, "participants.tsv lists it, and there is no such folder: was all of the set downloaded?", "partner")
        for person in sorted(there - listed):
            account.note(person, "participants.tsv does not list it")


def never(file: Named) -> str:
    part = file.entities.get("part", "mag")
    if part != "mag":
        return f"part-{part} is no magnitude"
    return "it shows what was removed with the face" if file.suffix == "defacemask" or file.entities.get("desc") == "deface" else ""


def _distance(truth: Named, other: Named, free: set[str]) -> tuple[bool, int, float, bool, PurePosixPath]:
    """How far a partner is: another session, entities that differ, runs between, another pipeline, its name."""
    keys = (set(truth.entities) | set(other.entities)) - free - {"ses", "run", "echo", *_FORMS}
    differ = sum(truth.entities.get(key) != other.entities.get(key) for key in keys)
    runs = abs(_number(truth.entities.get("run")) - _number(other.entities.get("run")))
    return truth.session != other.session, differ, runs, truth.section != other.section, other.path


def _agree(map_: Named, truth: Named) -> bool:
    """A mask or labels of this very image: no entity says otherwise, and both are in one space."""
    for key, value in map_.entities.items():
        if key in ("desc", "label", "space", "res", "den", "atlas", "seg"):
            continue
        if key in truth.entities and truth.entities[key] != value:
            return False
        if key not in truth.entities:
            return False
    own = (truth.suffix, "orig", "individual")  # names that mean the image's own space
    space, its = map_.entities.get("space", truth.suffix), truth.entities.get("space", truth.suffix)
    return space == its or (space in own and its in own)


def _by_person(files: list[Named]) -> dict[str, list[Named]]:
    people: dict[str, list[Named]] = defaultdict(list)
    for file in files:
        people[file.person].append(file)
    return people


def _forms(file: Named) -> tuple[int, int]:
    return sum(key in file.entities for key in _FORMS), len(file.entities)


def _number(text: str | None) -> float:
    return float(text) if text and text.isdecimal() else 1.0


def _reason(path: PurePosixPath, high: str, high_in: str | None) -> str:
    """Why a file that is named as BIDS names them is in no scan."""
    named = parse(path)
    if named is None or named.suffix != high:
        return f"{named.suffix if named else path.name} has no part in pairs of {high}"
    if named.section in OUTSIDE:
        return f"{named.section} is no part of the set"
    if named.datatype not in ("anat", ""):
        return f"it lies in {named.datatype}/, not in anat/"
    return f"high_in={shown(high_in)} does not take it" if high_in else f"high_in={shown(named.section)} would take it"


def _description(root: Path, account: Account) -> bool:
    """Whether the whole set is a derivative; what is odd about dataset_description.json is noted."""
    path = root / "dataset_description.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8-sig"))
        return isinstance(said, dict) and (said.get("DatasetType") == "derivative" or "PipelineDescription" in said)
    except FileNotFoundError:
        account.note(path.name, "is missing: BIDS requires it at the root of a set; check that this is the root")
    except (OSError, ValueError) as error:
        account.note(path.name, f"cannot be read ({shown(str(error))}): it is taken for one of a raw set")
    return False


def bidsignore(root: Path) -> Callable[[PurePosixPath], bool]:
    """Whether .bidsignore names a path: patterns as in .gitignore (`*`, `**`, `?`, leading and trailing `/`), without `!`."""
    try:
        lines = (root / ".bidsignore").read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return lambda path: False
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith(("#", "!"))]

    def names(path: PurePosixPath) -> bool:
        parts = path.parts
        heads = ["/".join(parts[: i + 1]) for i in range(len(parts))]  # the file and each folder above it
        for pattern in patterns:
            bare = pattern.strip("/").removeprefix("**/")
            if any(fnmatch.fnmatchcase(head, bare) for head in heads):
                return True
            anchored = "/" in pattern.rstrip("/") and not pattern.startswith("**/")
            if not anchored and any(fnmatch.fnmatchcase(part, bare) for part in parts):
                return True
        return False

    return names
