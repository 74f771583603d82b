"""The layout `fastmri`: HDF5 files with magnitude reconstructions, as in multicoil_train/file_brain_AXT2_200_2000001.h5.

What is read of them, and what is assumed, stands in `hdf5`.
"""

from collections import defaultdict
from pathlib import Path, PurePosixPath

from jaxsr.data.layouts import hdf5
from jaxsr.data.layouts.base import Found, Wanted
from jaxsr.data.layouts.tree import Account, look, stem_of
from jaxsr.data.layouts.wants import no_low
from jaxsr.data.people import plain
from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError


class FastMri:
    """fastMRI: `wanted.high` (default: all) and `wanted.reference` are acquisitions as the files name them: AXT1, AXT1PRE, AXT1POST, AXT2,
    AXFLAIR for the brain; CORPD_FBK, CORPDFS_FBK for the knee. `wanted.high_in` is a folder, as in multicoil_train.

    The person is the file's patient_id. Of a file in multicoil_… and in singlecoil_… (knees) the former is taken. Needs h5py.
    """

    def find(self, root: Path, wanted: Wanted) -> Found:
        no_low(root, wanted, "fastMRI", "each file is one acquisition")
        if wanted.reference and not wanted.high:
            raise VolumeError(f"{shown(root)}: say which acquisition is the truth (high), as in AXT1")
        hdf5.require_h5py()
        account = Account(look(root, hdf5.SUFFIXES))
        highs: dict[str, list[PurePosixPath]] = defaultdict(list)
        references: dict[str, list[PurePosixPath]] = defaultdict(list)
        names: dict[str, PurePosixPath] = {}
        for path in sorted(account.files, key=lambda p: ("singlecoil" in p.parent.name, p)):
            if wanted.high_in and wanted.high_in not in path.parts[:-1]:
                account.refuse(path, "unused", f"outside of {shown(wanted.high_in)}")
                continue
            try:
                facts = hdf5.facts(account.root / path)
            except VolumeError as error:
                account.refuse(path, "unreadable", str(error).removeprefix(f"{shown(account.root / path)}: "))
                continue
            person = plain(facts.patient) or stem_of(PurePosixPath(path.name))
            if not facts.reconstruction:
                account.refuse(path, "unreadable", hdf5.no_reconstruction(list(facts.held)))
            elif (first := names.setdefault(stem_of(PurePosixPath(path.name)), path)) != path:
                account.refuse(path, "duplicate", f"{shown(first)} has the same name, and was taken")
            elif wanted.high is None or facts.acquisition.lower() == wanted.high.lower():
                if not facts.patient:
                    account.note(str(path), "holds no patient_id: it is taken to be of somebody who has no other file")
                highs[person].append(path)
            elif wanted.reference and facts.acquisition.lower() == wanted.reference.lower():
                references[person].append(path)
            else:
                account.refuse(path, "unused", f"of {shown(facts.acquisition or 'an unnamed acquisition')}, not {shown(wanted.high)}")
        for person, paths in highs.items():
            for path in paths:
                files = {"high": path}
                if wanted.reference and not references[person]:
                    account.refuse(path, "partner", f"there is no {shown(wanted.reference)} of the same patient")
                    continue
                if wanted.reference:
                    files["reference"] = references[person][0]
                account.scan(stem_of(PurePosixPath(path.name)), person, files)
        used = {path for draft in account.drafts for path in draft.files.values()}
        for person, paths in references.items():
            for path in paths:
                if path not in used:
                    alone = not highs[person]
                    why = (
                        f"there is no {shown(wanted.high or '')} of the same patient"
                        if alone
                        else "the patient has another, which was taken"
                    )
                    account.refuse(path, "partner" if alone else "duplicate", why)
        return account.found()
