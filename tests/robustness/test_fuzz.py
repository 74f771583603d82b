"""Damaged and doctored files, by the thousand, through the command line: never a traceback, never a hang, never silent nonsense.

Case i is a function of i alone: a small valid volume of some format, damaged in some way. `FUZZ=i pytest … -k one_case` runs one.
"""

import bz2
import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest

SECONDS = 120  # of one process, on a busy machine
SHAPE = (16, 17, 18)
TELLING = {  # fields that decide what is read, and where it lies
    *("dim", "pixdim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "xyzt_units", "magic", "sizeof_hdr", "extents"),
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "version", "dims", "type", "goodRASFlag", "delta", "Mdc", "Pxyz_c"),
}
SUFFIXES = (".nii", ".nii.gz", ".mgh", ".mgz", ".hdr", ".img", ".img.gz", ".nii.bz2", ".nii.zst", ".gz", ".mnc", ".par", ".dcm", ".txt", "")
_noise = np.random.default_rng(0)
DATA = (_noise.integers(0, 1000, SHAPE) * (np.linspace(-1, 1, 18) ** 2 < 0.8)).astype(np.int16)
AFFINE = np.array([[0.0, 1.1, 0.1, -9], [-1.0, 0, 0, 8], [0, -0.11, 0.9, -7], [0, 0, 0, 1]])
AFFINE[:3, 1] -= AFFINE[:3, 2] * (AFFINE[:3, 1] @ AFFINE[:3, 2]) / (AFFINE[:3, 2] @ AFFINE[:3, 2])  # right angles


class Damaged(NamedTuple):
    """files: name → bytes; `entry` is the one that the command is given, with `words`.
    kind: how it was damaged.
    must_refuse: there is no way it is whole.
    untouched: if it is used all the same, its shape and its least and greatest intensity are these.
    """

    files: dict[str, bytes]
    entry: str
    words: tuple[str, ...]
    kind: str
    must_refuse: bool
    untouched: tuple | None


class Base(NamedTuple):
    name: str
    header: bytes  # or the whole file
    voxels: bytes | None  # of a pair
    dtype: np.dtype  # of the header
    end: int  # bytes to the end of the voxels
    facts: tuple  # shape, least, greatest


def bases():
    extended = nib.Nifti1Image(DATA, AFFINE)
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 40))
    sheared = AFFINE.copy()
    sheared[:3, 2] += 0.3 * sheared[:3, 1]
    scaled = nib.Nifti1Image(DATA, AFFINE)
    scaled.header.set_slope_inter(0.5, -7)
    images = {
        "plain.nii": nib.Nifti1Image(DATA, AFFINE),
        "both.nii": _coded(nib.Nifti1Image(DATA.astype(np.float32), AFFINE)),
        "packed.nii.gz": _coded(nib.Nifti1Image(DATA, AFFINE)),
        "second.nii": nib.Nifti2Image(DATA, AFFINE),
        "second.nii.gz": nib.Nifti2Image(DATA.astype(np.float64), AFFINE),
        "pair.hdr": nib.Nifti1Pair(DATA, AFFINE),
        "analyze.hdr": nib.AnalyzeImage(DATA, None),
        "extended.nii": extended,
        "several.nii": nib.Nifti1Image(np.stack([DATA, DATA[::-1]], -1), AFFINE),
        "sheared.nii.gz": nib.Nifti1Image(DATA, sheared),
        "big.nii": nib.Nifti1Image(DATA, AFFINE, nib.Nifti1Header(endianness=">")),
        "scaled.nii": scaled,
        "b.nii.bz2": nib.Nifti1Image(DATA, AFFINE),
        "surfer.mgh": nib.MGHImage(DATA, AFFINE),
        "surfer.mgz": nib.MGHImage(DATA.astype(np.float32), AFFINE),
    }
    return [_base(name, image) for name, image in images.items()]


def _coded(image):
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 1)
    return image


def _base(name, image):
    holders = {key: nib.FileHolder(fileobj=io.BytesIO()) for key in image.file_map}
    image.to_file_map(holders)
    header, voxels = (holders[key].fileobj.getvalue() if key in holders else None for key in ("header", "image"))
    dtype = image.header.structarr.dtype
    facts = _facts(type(image).from_file_map(holders))
    size = image.get_data_dtype().itemsize * int(np.prod(image.shape))
    if header is not None:
        return Base(name, header, voxels, dtype, size, facts)
    start = 284 if isinstance(image, nib.MGHImage) else int(np.frombuffer(voxels[: dtype.itemsize], dtype)["vox_offset"][0])
    return Base(name, voxels, None, dtype, start + size, facts)


def _facts(image):
    data = np.asarray(image.dataobj)[..., :1] if image.ndim > 3 else np.asarray(image.dataobj)
    return (list(image.shape[:3]), float(data.min()), float(data.max()))


BASES = bases()


def damaged(i):
    rng = np.random.default_rng(i)
    base = BASES[rng.integers(len(BASES))]
    kind = rng.choice(
        ["header", "header", "header", "header", "truncated", "flipped", "flipped", "renamed", "appended", "members", "checksum"]
    )
    whole, voxels, name = base.header, base.voxels, base.name
    packer = {".gz": _gzip, ".mgz": _gzip, ".bz2": bz2.compress}.get(Path(name).suffix, lambda data: data)
    packed = Path(name).suffix in (".gz", ".mgz", ".bz2")
    must_refuse, untouched = False, base.facts
    if kind in ("members", "checksum") and not name.endswith("gz"):
        kind = "header"
    match kind:
        case "header":
            raw = bytearray(whole)
            for _ in range(rng.integers(1, 4)):
                _doctor(raw, base.dtype, rng)
            whole, untouched = packer(bytes(raw)), None
        case "truncated":
            whole = packer(whole)
            if voxels is not None and rng.random() < 0.7:
                voxels = voxels[: rng.integers(len(voxels))]
                must_refuse = True
            else:
                cut = int(rng.integers(len(whole)))
                must_refuse = packed or cut < (base.end if voxels is None else 348)
                whole = whole[:cut]
        case "flipped":
            whole = packer(whole)
            raw = bytearray(whole)
            for at in rng.integers(0, 8 * len(raw), rng.integers(1, 9)):
                raw[at // 8] ^= 1 << (at % 8)
            if packed:
                must_refuse = not _same(bytes(raw), whole, name)
            else:
                untouched = None
            whole = bytes(raw)
        case "renamed":
            whole, old = packer(whole), next(s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s))
            name = name.removesuffix(old) + str(rng.choice(SUFFIXES))
            voxels = None if rng.random() < 0.5 else voxels
        case "appended":
            garbage = rng.bytes(int(rng.integers(1, 2000)))
            whole, voxels = (packer(whole) + garbage, None) if voxels is None else (whole, voxels + garbage)
            must_refuse = name.endswith("gz")
        case "members":
            half = int(rng.integers(1, len(whole)))
            second = [whole[half:], rng.bytes(500), bytes(1 << 20)][rng.integers(3)]
            whole = _gzip(whole[: half if second == whole[half:] else None]) + _gzip(second)
        case "checksum":
            raw = bytearray(packer(whole))
            raw[-int(rng.integers(1, 9))] ^= int(rng.integers(1, 256))
            whole, must_refuse = bytes(raw), True
    files = {name: whole}
    if voxels is not None:
        files[name.replace(".hdr", ".img") if ".hdr" in name else "pair.img"] = voxels
    words = []
    if rng.random() < 0.3:
        words += ["--to-mm", f"{10 ** rng.uniform(-0.8, 0.9):.2f}"]
    if "several" in base.name or rng.random() < 0.1:
        words += ["--volume", str(rng.integers(0, 2))]
        must_refuse = must_refuse and kind != "appended"
        untouched = None if words[-1] == "1" else untouched
    if rng.random() < 0.3:
        words += ["--nan", "zero"]
    if "sheared" in base.name or "analyze" in base.name:
        untouched = None  # resampled; mirrored
    return Damaged(files, name, tuple(words), f"{kind} {base.name}", must_refuse, untouched)


def _gzip(data):
    return gzip.compress(data, 1, mtime=0)


def _same(damaged, whole, name):
    """Whether damage to a packed file has left its content as it was: a date, a name, padding."""
    unpack = bz2.decompress if name.endswith("bz2") else gzip.decompress
    with contextlib.suppress(OSError, EOFError, zlib.error, ValueError):
        return unpack(damaged) == unpack(whole) and damaged[:2] == whole[:2]
    return False


def _doctor(raw, dtype, rng):
    """A random element of a random field gets a random or an extreme value."""
    told = [name for name in dtype.names if name in TELLING]
    name = str(rng.choice(told if told and rng.random() < 0.7 else dtype.names))
    field, start = dtype.fields[name][:2]
    count = max(1, int(np.prod(field.shape)))
    base = field.base
    at = start + int(rng.integers(count)) * base.itemsize
    if at + base.itemsize > len(raw):
        return
    if base.kind in "iu":
        limits = np.iinfo(base)
        value = rng.choice(
            [0, 1, 2, 3, 4, 5, 7, 16, 64, 255, 256, 512, limits.max, limits.min, limits.max // 2, int(rng.integers(limits.min, limits.max))]
        )
        content = np.array(int(value) if limits.min <= value <= limits.max else 1).astype(base).tobytes()
    elif base.kind == "f":
        value = rng.choice(
            [np.nan, np.inf, -np.inf, 0, -0.0, 1, -1, 1e-45, 1e-30, 1e-5, 1e5, 1e30, 3e38, rng.normal(), 10 ** rng.uniform(-40, 38)]
        )
        with np.errstate(all="ignore"):
            content = np.array(value).astype(base).tobytes()
    else:
        content = rng.bytes(base.itemsize)
    raw[at : at + base.itemsize] = content


def complaint(i, folder, call):
    """What is wrong with how case i ends, or None; and whether it was refused."""
    case = damaged(i)
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    try:
        done = call("inspect", folder / case.entry, "--json", *case.words)
        return judge(case, done), done.status != 0
    except Exception as error:
        return f"{case.kind}: {type(error).__name__}: {error}", False
    finally:
        for name in case.files:
            (folder / name).unlink()


def judge(case, done):
    if done.warned:
        return f"{case.kind}: warns {done.warned}"
    if done.status not in (0, 2, 3) or "Traceback" in done.err + done.out:
        return f"{case.kind}: status {done.status}, {done.err[:500]}"
    if done.status == 0:
        return f"{case.kind}: accepted though it is damaged" if case.must_refuse else nonsense(case, json.loads(done.out))
    lines = done.err.splitlines()
    if len(lines) != 1 or not lines[0].startswith("jaxsr: ") or len(lines[0]) > 700:
        return f"{case.kind}: not one sentence: {done.err[:500]}"
    return None


def nonsense(case, reports):
    """A report of a file that is used says only what can be."""
    for report in reports:
        volume, intensity = report["volume"], report["intensity"]
        affine = np.array(volume["affine"])
        sizes = np.array(volume["voxel_size_mm"])
        low, high = intensity["window"]
        fine = (
            np.isfinite(affine).all()
            and abs(np.linalg.det(affine[:3, :3] / sizes)) > 0.5  # straightened
            and (sizes >= 0.0099).all() and (sizes <= 101).all()
            and intensity["least"] <= low < high <= intensity["greatest"]
            and np.isfinite([intensity["least"], intensity["greatest"]]).all()
            and 0 <= intensity["background"] < 1
            and min(volume["shape"]) >= 4 and min(report["output"]["shape"]) >= 4
            and report["axes"]
        )  # fmt: skip
        if not fine:
            return f"{case.kind}: nonsense is accepted: {report}"
        if case.untouched and [volume["shape"], intensity["least"], intensity["greatest"]] != list(case.untouched):
            return f"{case.kind}: accepted as another volume: {report}, {case.untouched}"
        silent = report["stored"]["format"] == "MGH" or case.entry.endswith("bz2")  # tags of its own; ends where it ends
        if case.kind.startswith("appended") and not silent and not any("bytes follow" in n for n in report["notes"]):
            return f"{case.kind}: what is behind the voxels goes unsaid: {report}"
    return None


def complaints(cases, folder, call):
    """What is wrong with the way cases were dealt with, and the share of them that was refused."""
    found, refused = [], 0
    for i in cases:
        wrong, was_refused = complaint(i, folder, call)
        refused += was_refused
        if wrong:
            found.append(f"case {i}: {wrong}")
    print(f"{len(cases)} cases, {refused} refused, {len(cases) - refused} used, {len(found)} wrong")
    return found, refused / len(cases)


def test_500_damaged_files_are_refused_in_a_sentence_or_read_as_what_they_are(tmp_path, call):
    found, refused = complaints(range(500), tmp_path, call)
    assert not found, "\n".join(found[:20])
    assert 0.2 < refused < 0.9  # neither half is empty


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 10_000, 500))
def test_10000_damaged_files_are_refused_in_a_sentence_or_read_as_what_they_are(start, tmp_path, call):
    found, refused = complaints(range(start, start + 500), tmp_path, call)
    assert not found, "\n".join(found[:20])
    assert 0.2 < refused < 0.9


@pytest.mark.skipif("FUZZ" not in os.environ, reason="runs the one case that FUZZ names")
def test_one_case(tmp_path, call):
    assert complaint(int(os.environ["FUZZ"]), tmp_path, call)[0] is None


LITTLE = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
runpy.run_module("jaxsr", run_name="__main__")
"""


@pytest.mark.parametrize("start", range(0, 20, 5))
def test_in_a_process_of_its_own_with_little_memory_a_damaged_file_ends_alike(start, tmp_path):
    """4 GB of address space, which the imports alone need a good part of; five files at a time, one command each."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    running = []
    for i in range(start, start + 5):
        case, folder = damaged(10_000 + i), tmp_path / str(i)
        folder.mkdir()
        for name, content in case.files.items():
            (folder / name).write_bytes(content)
        words = [sys.executable, "-c", LITTLE, "inspect", str(folder / case.entry), "--json", *case.words]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        running.append((case, folder, process))
    for case, folder, process in running:
        out, err = process.communicate(timeout=SECONDS)
        assert judge(case, SimpleNamespace(status=process.returncode, out=out, err=err, warned=[])) is None
        assert {p.name for p in folder.iterdir()} == set(case.files)


def test_upscale_uses_of_damaged_files_what_inspect_would_and_leaves_nothing_of_the_others(identity, call, tmp_path):
    """100 cases; 2 mm of target keeps them small."""
    used = 0
    for i in range(20_000, 20_100):
        case, folder = damaged(i), tmp_path / str(i)
        folder.mkdir()
        for name, content in case.files.items():
            (folder / name).write_bytes(content)
        words = [word for word in case.words if word not in ("--to-mm",) and "." not in word] + ["--to-mm", "2"]
        report = call("inspect", folder / case.entry, "--json", *words)
        done = call("upscale", "-i", folder / case.entry, "-o", folder / "out" / "x.nii.gz", "-m", identity, "--no-montage", *words)
        assert done.status == report.status, f"case {i}: {case.kind}: {done.err} {report.err}"
        assert done.err == report.err
        if done.status:
            assert {p.name for p in folder.iterdir()} == set(case.files)
            continue
        used += 1
        if not json.loads(report.out):  # an empty list
            continue
        expected = json.loads(report.out)[0]
        out = nib.load(folder / "out" / "x.nii.gz")
        assert list(out.shape) == expected["output"]["shape"]
        assert np.isfinite(out.get_fdata()).all()
        np.testing.assert_allclose(out.header.get_zooms(), 2, rtol=1e-5)
        assert {p.name for p in (folder / "out").iterdir()} == {"x.nii.gz", "x.json"}
    assert 20 < used < 80
