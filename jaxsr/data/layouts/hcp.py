"""The layout `hcp`: structural scans of the Human Connectome Project, Young Adult.

    ROOT/100307/T1w/T1w_acpc_dc_restore.nii.gz                       'restore': aligned, undistorted, bias field removed, 0.7 mm
    ROOT/100307/T1w/T1w_acpc_dc_restore_brain.nii.gz                 'restore_brain': and without the skull
    ROOT/100307/T1w/T1w_acpc_dc.nii.gz                               'acpc_dc': before the bias field is removed
    ROOT/100307/T1w/{BiasField_acpc_dc,brainmask_fs,aparc+aseg}.nii.gz
    ROOT/100307/unprocessed/3T/T1w_MPR1/100307_3T_T1w_MPR1.nii.gz    'unprocessed': as scanned, and T2w_SPC1

Everything structural is of 3 T: the 7 T release of the 184 subjects holds functional and diffusion scans only.
"""

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

from jaxsr.data.layouts.base import Found, Wanted
from jaxsr.data.layouts.tree import Account, look, stem_of
from jaxsr.data.layouts.wants import no_low, word
from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError

_SUBJECT = re.compile(r"(\d{6})(_retest)?")
_CONTRASTS = {"T1w": "T1w", "T1": "T1w", "T2w": "T2w", "T2": "T2w"}
_STATES = ("restore", "restore_brain", "acpc_dc", "unprocessed")
_PROCESSED = {"restore": "_acpc_dc_restore", "restore_brain": "_acpc_dc_restore_brain", "acpc_dc": "_acpc_dc"}
_UNPROCESSED = re.compile(r"unprocessed/3T/(T[12]w)_(?:MPR|SPC)(\d+)/[^/]+_3T_\1_(?:MPR|SPC)\2")
_SEVEN = (
    "HCP has no structural scans at 7 T (its 7 T release is functional and diffusion): take the 3 T ones of 0.7 mm as truths and let the "
    "low side be simulated, or use a set with scans at both fields (layout openneuro)"
)


class Hcp:
    """HCP Young Adult: `wanted.high` (default T1w) and `wanted.reference` are T1w or T2w; `wanted.high_in` is one of restore (default),
    restore_brain, acpc_dc, unprocessed, of both.

    The mask is brainmask_fs, labels are aparc+aseg; as scanned there are neither. The bias field goes with acpc_dc only, whose images it
    multiplies: 'restore' has been divided by it. Runs of 'unprocessed' are scans of their own, with the reference of the nearest run. HCP's
    gradient-nonlinearity warps are not looked for: 'unprocessed' has not been corrected, all else has.

    The person is the number, of the retest set (`103818_retest`) too. Many subjects are siblings or twins: give `families`, made of the
    columns Subject and Family_ID of the restricted table, to keep families in one split.
    """

    def find(self, root: Path, wanted: Wanted) -> Found:
        if any("7t" in (text or "").lower() for text in (wanted.high, wanted.high_in, wanted.low, wanted.low_in, wanted.reference)):
            raise VolumeError(f"{shown(root)}: {_SEVEN}")
        no_low(root, wanted, "HCP", "all of it is of one resolution")
        high = word(root, "high", wanted.high, _CONTRASTS) or "T1w"
        reference = word(root, "reference", wanted.reference, _CONTRASTS)
        state = word(root, "high_in", wanted.high_in, {name: name for name in _STATES}) or "restore"
        account = Account(look(root))
        subjects: dict[PurePosixPath, dict[str, PurePosixPath]] = defaultdict(dict)
        for path in account.files:
            top = next((at for at in reversed(path.parents) if _SUBJECT.fullmatch(at.name)), None)
            if top is not None:
                subjects[top][stem_of(path.relative_to(top))] = path
        for top, files in subjects.items():
            if state == "unprocessed":
                _unprocessed(account, top, files, high, reference)
            else:
                _processed(account, top, files, high, reference, state)
        known = {path for files in subjects.values() for path in files.values()}
        asked = f"{high} and {reference}" if reference else high
        return account.found(
            lambda path: f"not of {asked} ({state})" if path in known else "in no subject's folder (six digits, as in 100307)"
        )


def _processed(account: Account, top: PurePosixPath, files: dict[str, PurePosixPath], high: str, reference: str | None, state: str) -> None:
    names = {
        "high": f"{high}{_PROCESSED[state]}",
        "reference": f"{reference}{_PROCESSED[state]}" if reference else "",
        "mask": "brainmask_fs",
        "labels": "aparc+aseg",
        "bias": "BiasField_acpc_dc" if state == "acpc_dc" else "",
    }
    there = {role: files[path] for role, name in names.items() if (path := f"T1w/{name}") in files}
    lacking = [role for role in ("high", "reference") if names[role] and role not in there]
    if lacking:
        why = f"there is no T1w/{names[lacking[0]]}.nii.gz: was the structural package of {shown(top.name)} unpacked?"
        account.note(str(top), why, "partner")
        return
    if state != "acpc_dc" and "T1w/BiasField_acpc_dc" in files:
        why = "the truth has been divided by it already: high_in=acpc_dc takes images that it multiplies, and the field"
        account.refuse(files["T1w/BiasField_acpc_dc"], "unused", why)
    account.scan(top.name, _person(top), there)


def _unprocessed(account: Account, top: PurePosixPath, files: dict[str, PurePosixPath], high: str, reference: str | None) -> None:
    runs: dict[str, dict[int, PurePosixPath]] = {"T1w": {}, "T2w": {}}
    for inside, path in files.items():
        if name := _UNPROCESSED.fullmatch(inside):
            runs[name[1]][int(name[2])] = path
    lacking = [contrast for contrast in (high, reference) if contrast and not runs[contrast]]
    if lacking:
        account.note(str(top), f"there is no unprocessed {lacking[0]} of 3 T: was its package unpacked?", "partner")
        return
    for run, path in runs[high].items():
        pair = {"high": path}
        if reference:
            pair["reference"] = runs[reference][min(runs[reference], key=lambda other: (abs(other - run), other))]
        account.scan(f"{top.name}_{path.parent.name}", _person(top), pair)


def _person(top: PurePosixPath) -> str:
    return top.name.removesuffix("_retest")
