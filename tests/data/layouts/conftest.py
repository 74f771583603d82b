"""Trees of tiny files with the real names of data sets."""

import functools
import gzip
import os
from pathlib import Path, PurePosixPath

import h5py
import nibabel as nib
import numpy as np
import pytest

from jaxsr.files import shown

XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>36</x><y>18</y><z>1</z></matrixSize>
<fieldOfView_mm><x>440</x><y>220</y><z>7.5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>20</x><y>18</y><z>1</z></matrixSize>
<fieldOfView_mm><x>220</x><y>180</y><z>5</z></fieldOfView_mm></reconSpace>
</encoding></ismrmrdHeader>"""

KNOWN = (".nii", ".nii.gz", ".mgh", ".mgz")


@functools.cache
def tiny(suffix):
    """Bytes of a volume of 16³."""
    data = np.random.default_rng(0).uniform(0, 100, (16, 16, 16)).astype(np.float32)
    if suffix in (".mgh", ".mgz"):
        plain = nib.MGHImage(data, np.eye(4)).to_bytes()
    else:
        plain = nib.Nifti1Image(data, np.eye(4)).to_bytes()
    return gzip.compress(plain, mtime=0) if suffix in (".nii.gz", ".mgz") else plain


def write(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = next((s for s in (".nii.gz", ".nii", ".mgz", ".mgh") if path.name.lower().endswith(s)), None)
    path.write_bytes(content if content is not None else tiny(suffix) if suffix else b"")


def write_fastmri(path, acquisition="AXT2", patient="patient", shape=(6, 20, 18), names=("reconstruction_rss",), xml=XML, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["kspace"] = np.zeros((2, 2), np.complex64)
        for name in names:
            file[name] = np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)
        if xml:
            file["ismrmrd_header"] = xml.encode()
        file.attrs["acquisition"] = acquisition
        if patient is not None:
            file.attrs["patient_id"] = patient


@pytest.fixture
def plant(tmp_path):
    """Writes a tiny file for each name (below `at`), and returns the root."""

    def plant(*names, at="set"):
        for name in names:
            write(tmp_path / at / name)
        return tmp_path / at

    return plant


@pytest.fixture
def annexed():
    """Makes a link as git-annex does whose content is not there."""

    def annexed(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("../../.git/annex/objects/Xx/yy/MD5E-s99--0.nii.gz/MD5E-s99--0.nii.gz")

    return annexed


def roles(scan, root):
    return {role: path.relative_to(root).as_posix() for role, path in scan.files.items()}


def everything(found, root):
    """Scans by id, as their files by role."""
    return {scan.id: roles(scan, root) for scan in found.scans}


def reasons(found, kind=None):
    return {problem.path: problem.why for problem in found.problems if kind in (None, problem.kind)}


def unaccounted(found, root, known=KNOWN):
    """Volumes under `root` that are in no scan and in no problem: must be none. Hidden ones are counted in one problem."""
    used = {path.relative_to(root).as_posix() for scan in found.scans for path in scan.files.values()}
    said = {problem.path for problem in found.problems}
    left = []
    for folder, _, names in os.walk(root):
        for name in names:
            inside = PurePosixPath(Path(folder, name).relative_to(root).as_posix())
            hidden = any(part.startswith(".") or part == "__MACOSX" for part in inside.parts)
            if not name.lower().endswith(known) or hidden or inside.as_posix() in used:
                continue
            if not any(shown(inside) == path or (path.endswith("/") and shown(inside).startswith(path)) for path in said):
                left.append(str(inside))
    return left


@pytest.fixture
def show():
    """What tests look at: `show.scans(found, root)`, `show.reasons(found, kind)`, `show.unaccounted(found, root)`."""

    class Show:
        scans = staticmethod(everything)
        reasons = staticmethod(reasons)
        unaccounted = staticmethod(unaccounted)
        write = staticmethod(write)
        write_fastmri = staticmethod(write_fastmri)

    return Show
