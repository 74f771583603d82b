"""Thirty kinds of odd or bad input that users of other tools have met, through the command line.

What can be used is upscaled, with a warning where it is doubtful; what cannot is refused with one sentence and exit status 2, and nothing
is left behind. Cases are numbered; a case may have several files.
"""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

SHAPE, MM = (18, 17, 16), 6.0
POINTS = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
BALL = 1000 * (np.sqrt((POINTS**2).sum(0)) < 0.8) * (1.2 + POINTS[0] * POINTS[1])
HEAD = np.abs(BALL + np.random.default_rng(0).normal(0, 20, SHAPE)).astype(np.float32)
AFFINE = np.array([[MM, 0, 0, -40], [0, MM, 0, -50], [0, 0, MM, -60], [0, 0, 0, 1.0]])
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def turned(degrees, shift=(0, 0, 0), axes="z"):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler(axes, degrees, degrees=True).as_matrix()
    turn[:3, 3] = shift
    return turn @ AFFINE


def nifti(folder, data=HEAD, affine=AFFINE, codes=(1, 1), qform=None, name="v.nii", units="mm", kind=nib.Nifti1Image, **patches):
    """A file whose header says exactly what is asked, also where nibabel would mend it: `patches` are written over its bytes."""
    image = kind(data, None, dtype=data.dtype)
    image.set_qform(affine if qform is None else qform, codes[1])
    image.set_sform(affine, codes[0])
    image.header.set_xyzt_units(units)
    for field in ("descrip", "cal_max", "intent_code", "aux_file"):
        if field in patches:
            image.header[field] = patches.pop(field)
    path = folder / name
    image.to_filename(path)
    return patched(path, **patches)


def patched(path, **fields):
    """Fields of a NIfTI-1 header replaced: name → value(s)."""
    raw = bytearray(path.read_bytes())
    for name, value in fields.items():
        dtype, start = nib.Nifti1Header.template_dtype.fields[name]
        at = start + (4 if name == "pixdim" else 2 if name == "dim" else 0)  # of those the first is no length
        content = np.atleast_1d(np.asarray(value, dtype.base)).tobytes()
        raw[at : at + len(content)] = content
    path.write_bytes(raw)
    return path


def content(name, data):
    def make(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return make


def packed(**options):
    return gzip.compress(nib.Nifti1Image(HEAD, AFFINE).to_bytes(), mtime=0, **options)


def flipped(data, at):
    raw = bytearray(data)
    raw[at] ^= 1
    return bytes(raw)


def file(*args, **options):
    return lambda folder: nifti(folder, *args, **options)


def with_voxels(*values, **options):
    data = HEAD.copy()
    data.flat[: len(values)] = values
    return file(data, **options)


def shear(folder):
    affine = AFFINE.copy()
    affine[1, 2] = 2.0
    return nifti(folder, affine=affine)


def extended(folder):
    image = nib.Nifti1Image(HEAD, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"patient: Jane Doe"))
    image.header["descrip"], image.header["cal_max"], image.header["intent_code"], image.header["aux_file"] = b"stale", 42, 1001, b"none"
    image.to_filename(folder / "v.nii")
    return folder / "v.nii"


def saved(kind, name, data=HEAD, affine=AFFINE, **options):
    def make(folder):
        kind(data, affine, **options).to_filename(folder / name)
        return folder / name

    return make


def oriented(codes):
    def make(folder):
        source = nib.Nifti1Image(HEAD, AFFINE)
        turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes))
        source.as_reoriented(turn).to_filename(folder / "v.nii")
        return folder / "v.nii"

    return make


# --- what must hold of an output; each is given the images of input and output ---


def same_place(source, out):
    np.testing.assert_allclose(out.affine, source.affine, atol=1e-4)
    assert out.shape == source.shape[:3]


def codes(sform, qform):
    def check(source, out):
        assert (int(out.header["sform_code"]), int(out.header["qform_code"])) == (sform, qform)
        assert out.header.get_xyzt_units()[0] == "mm"

    return check


def plain_scaling(source, out):
    with gzip.open(out.get_filename()) if out.get_filename().endswith(".gz") else open(out.get_filename(), "rb") as stream:
        assert np.frombuffer(stream.read(120)[112:], "<f4").tolist() == [1, 0]


def many_levels(source, out):
    assert len(np.unique(np.asarray(out.dataobj))) > 1000


def right_angled(source, out):
    directions = out.affine[:3, :3] / np.linalg.norm(out.affine[:3, :3], axis=0)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    assert not np.allclose(out.affine, source.affine, atol=0.1)


def centred(source, out):
    """The field of view keeps its centre, and sides follow ⌊n v / v' + ½⌋."""
    middles = [i.affine @ [*(np.array(i.shape[:3]) - 1) / 2, 1] for i in (source, out)]
    np.testing.assert_allclose(*middles, atol=1e-3)
    assert out.shape == tuple(int(n * v / MM + 0.5) for n, v in zip(source.shape, source.header.get_zooms(), strict=False))


def same_directions(source, out):
    np.testing.assert_allclose(*[i.affine[:3, :3] / np.linalg.norm(i.affine[:3, :3], axis=0) for i in (source, out)], atol=1e-5)
    np.testing.assert_allclose(nib.load(out.get_filename()).affine, source.affine, atol=1e-4)


def nothing_stale(source, out):
    assert source.header.extensions
    assert not out.header.extensions
    assert (float(out.header["cal_max"]), out.header.get_intent()[0], out.header["aux_file"].item()) == (0, "none", b"")
    assert out.header["descrip"].item() == b"jaxsr: synthetic"
    assert b"Jane" not in Path(out.get_filename()).read_bytes()


def offset_kept(source, out):
    facts = json.loads(Path(out.get_filename()).with_suffix(".json").read_text())
    low, high = facts["JaxSR"]["IntensityWindow"]
    assert low < -30_000
    assert high > 30_000


def in_millimetres(source, out):
    np.testing.assert_allclose(out.header.get_zooms(), [MM] * 3, rtol=1e-5)


def all_of(*checks):
    def check(source, out):
        for one in checks:
            one(source, out)

    return check


class Case(NamedTuple):
    """`number` of the case; `make` writes the input into a folder; `says` is in the warning, or in the sentence of a refusal."""

    number: str
    what: str
    make: Callable[[Path], Path]
    says: str = ""
    check: Callable = lambda source, out: None
    words: tuple[str, ...] = ()


TWICE = np.stack([HEAD, HEAD[::-1]], -1)
HOLED = TWICE.copy()
HOLED[0, 0, :3], HOLED[1, 1, 1] = np.nan, np.inf

ACCEPTED = [
    Case("1", "sform and qform differ", file(qform=turned(5, (30, 0, 0))),
         r"disagree \(up to \d+\.\d\d mm apart, turned by 5\.00 degrees\): the sform is used", all_of(same_place, codes(1, 1))),
    Case("2", "no sform", file(codes=(0, 1)), check=all_of(same_place, codes(1, 1))),
    Case("3", "no form at all", file(codes=(0, 0)), "no orientation .*left and right may be exchanged", codes(1, 1)),
    Case("4a", "a fresh image", saved(nib.Nifti1Image, "v.nii"), check=all_of(same_place, codes(2, 2))),
    Case("4b", "in MNI space", file(codes=(4, 4), units="unknown"), check=all_of(same_place, codes(4, 4))),
    Case("4c", "aligned, and in the scanner", file(codes=(2, 1)), check=codes(2, 1)),
    Case("5", "sheared", shear, "sheared .*\n.*resampled to a straight grid", right_angled),
    Case("7", "45 degrees oblique", file(affine=turned(45)), check=same_directions),
    Case("8a", "RAS", oriented("RAS"), check=same_place),
    Case("8b", "LPS", oriented("LPS"), check=same_place),
    Case("8c", "PIL", oriented("PIL"), check=same_place),
    Case("9a", "one volume in 4-D", file(HEAD[..., None]), check=same_place),
    Case("9b", "one volume in 5-D", file(HEAD[..., None, None]), check=same_place),
    Case("12a", "slope 0", file(scl_slope=0), check=plain_scaling),
    Case("12b", "slope NaN", file(scl_slope=np.nan, scl_inter=np.nan), check=plain_scaling),
    Case("12c", "slope 2, intercept 3", file(HEAD.astype(np.int16), scl_slope=2, scl_inter=3), check=plain_scaling),
    Case("13", "uint8", file((HEAD / 10).astype(np.uint8)), check=many_levels),
    Case("16", "odd range", file((HEAD / HEAD.max() * 65283 - 32767).astype(np.int16)), check=offset_kept),
    Case("17a", "int64", file(HEAD.astype(np.int64))),
    Case("17b", "a mask", file((HEAD > 100).astype(np.uint8))),
    Case("18", "float64", file(HEAD.astype(np.float64)), check=many_levels),
    Case("23a", "pixdim 0", file(pixdim=(0, MM, MM)),
         "pixdim is 0 × 6 × 6: the voxel size 6 × 6 × 6 mm is taken from the sform", in_millimetres),
    Case("23b", "pixdim negative", file(pixdim=(-MM, MM, MM)), "pixdim is -6 × 6 × 6", in_millimetres),
    Case("24a", "metres", file(affine=np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE, units="meter"), "in metres: converted", in_millimetres),
    Case("24b", "microns", file(affine=np.diag([1e3, 1e3, 1e3, 1]) @ AFFINE, units="micron"), "in microns: converted", in_millimetres),
    Case("25", "extensions and stale fields", extended, check=nothing_stale),
    Case("27", "another voxel size", file(affine=turned(8, axes="x") @ np.diag([0.8, 0.9, 1.1, 1])),
         "6 mm is coarser than the scan", centred),
    *(Case(f"28{letter}", f"{n} voxels in 96 mm", file(np.resize(HEAD, (n, 17, 16)), affine=AFFINE @ np.diag([16 / n, 1, 1, 1])),
           "" if n == 16 else "6 mm is coarser than the scan", centred) for letter, n in zip("abc", (16, 17, 19), strict=True)),
    Case("29a", "big-endian", saved(nib.Nifti1Image, "v.nii", header=nib.Nifti1Header(endianness=">")), check=same_place),
    Case("29b", "a pair", saved(nib.Nifti1Pair, "v.img"), check=same_place),
    Case("29c", "NIfTI-2", saved(nib.Nifti2Image, "v.nii"), check=same_place),
    Case("30", "MGZ", saved(nib.MGHImage, "v.mgz"), check=same_place),
]  # fmt: skip

SECOND = [  # with --volume 1 --nan zero
    Case("11d", "a volume of several, named", file(TWICE), check=same_place),
    Case("14b", "NaN and Inf set to zero", file(np.stack([HEAD, HOLED[..., 0]], -1)),
         "3 NaN and 1 infinite voxels of 4896 set to 0", same_place),
]  # fmt: skip

REFUSED = [
    Case("6a", "singular affine", file(affine=np.diag([MM, MM, 0, 1]), qform=AFFINE), r"singular \(row 3 is \[0, 0, 0, 0\]\)"),
    Case("6b", "NaN in the affine", file(srow_y=np.nan), r"row 2 of the affine is \[nan, .*not finite"),
    Case("10a", "(x, y, 1, 1)", file(HEAD[:, :, :1, None]), "18 × 17 × 1 voxels is too thin.*at least 4"),
    Case("10b", "(1, y, z)", file(HEAD[:1]), "1 × 17 × 16 voxels is too thin"),
    Case("11a", "4-D", file(TWICE), "holds 2 volumes: name one .upscale and inspect take --volume K, K from 0 to 1., or split it"),
    Case("11b", "RGB", file(np.zeros(SHAPE, RGB)), r"colours \(RGB\)"),
    Case("11c", "complex", file(HEAD.astype(np.complex64)), "complex: give the magnitude"),
    Case("12d", "intercept NaN", file(scl_slope=2, scl_inter=np.nan), "inter"),
    Case("14a", "NaN", with_voxels(np.nan, np.nan, np.inf), "2 NaN and 1 infinite voxels of 4896: .*--nan zero"),
    Case("15a", "constant", file(np.full(SHAPE, 7, np.float32)), "no contrast, every voxel is 7"),
    Case("15b", "zero", file(np.zeros(SHAPE, np.int16)), "no contrast, every voxel is 0"),
    Case("17c", "one bit a voxel", file(datatype=1), "code 1"),
    Case("19", "truncated gzip", content("v.nii.gz", packed()[:-2000]), "truncated.*copy or download it again"),
    Case("20a", "wrong checksum", content("v.nii.gz", flipped(packed(), -6)), "damaged.*copy or download it again"),
    Case("20b", "a bit flipped inside", content("v.nii.gz", flipped(packed(), 3000)), "damaged.*copy or download it again"),
    Case("21a", "empty", content("v.nii.gz", b""), "empty"),
    Case("21b", "gzip named .nii", content("v.nii", packed()), "renamed .*never unpacked"),
    Case("21c", "plain named .nii.gz", content("v.nii.gz", gzip.decompress(packed())), "unpacked already .*damaged"),
    Case("21d", ".nii.gzip", content("v.nii.gzip", packed()), "renamed .*never unpacked"),
    Case("23c", "pixdim 10 % off", file(pixdim=(6.6, MM, MM)), "6.6 × 6 × 6 mm but the sform 6 × 6 × 6 mm, more than 5% apart"),
    Case("26", "more than fits in memory", file(affine=AFFINE @ np.diag([16, 16, 16, 1])),
         r"17280 × 16320 × 15360 voxels, which needs \d+\.\d GB of memory", words=("--to-mm", "0.1")),
    Case("29d", "a side over 32767 in NIfTI-1", file(dim=-25536), "too thin|dim"),
]  # fmt: skip


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Batch(NamedTuple):
    sources: dict[str, Path]
    outputs: dict[str, Path]
    said: str


def upscale_together(cases, folder, jaxsr, run_dir, *words):
    """All `cases` in one run of the command, as a list."""
    sources = {}
    for case in cases:
        (folder / "made" / case.number).mkdir(parents=True)
        made = case.make(folder / "made" / case.number)
        for half in made.parent.iterdir():  # a pair has two
            half.rename(half.with_name(half.name.replace("v.", f"{case.number}.", 1)))
        sources[case.number] = made.with_name(made.name.replace("v.", f"{case.number}.", 1))
    (folder / "list.txt").write_text("# all\n" + "\n".join(map(str, sources.values())))
    before = snapshot(folder / "made")
    done = jaxsr("upscale", "-i", folder / "list.txt", "-o", folder / "out", "--model", run_dir, "--no-montage", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert snapshot(folder / "made") == before
    outputs = {n: folder / "out" / (p.name if p.suffix != ".img" else f"{n}.nii.gz") for n, p in sources.items()}
    expected = {name for p in outputs.values() for name in (p.name, p.name.split(".")[0] + ".json")}
    assert {p.name for p in (folder / "out").iterdir()} == expected
    return Batch(sources, outputs, done.stdout)


@pytest.fixture(scope="module")
def batches(tmp_path_factory, jaxsr, run_dir):
    first = upscale_together(ACCEPTED, tmp_path_factory.mktemp("first"), jaxsr, run_dir)
    second = upscale_together(SECOND, tmp_path_factory.mktemp("second"), jaxsr, run_dir, "--volume", "1", "--nan", "zero")
    return {**{case.number: first for case in ACCEPTED}, **{case.number: second for case in SECOND}}


def expect_refusal(done, says):
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("jaxsr: ")


def expect_use(case, batch):
    out, source = nib.load(batch.outputs[case.number]), nib.load(batch.sources[case.number])
    said = "\n".join(re.findall(rf"^{batch.sources[case.number].name}: (?!\d+/\d+ slices).*", batch.said, re.M))
    assert re.search(case.says, said) if case.says else not said
    assert out.get_data_dtype() == (">f4" if batch.outputs[case.number].suffix == ".mgz" else np.float32)
    assert np.isfinite(out.get_fdata()).all()
    assert np.ptp(out.get_fdata()) > 0
    if isinstance(out, nib.Nifti1Image):
        np.testing.assert_allclose(out.get_qform(), out.get_sform(), atol=1e-3)
    facts = json.loads(batch.outputs[case.number].with_name(f"{case.number}.json").read_text())
    assert "Synthetic" in facts["Description"]
    if case.says:
        assert any(re.search(case.says.split("\n")[0].strip(".* "), note) for note in facts["JaxSR"]["Notes"])
    case.check(source, out)


@pytest.mark.parametrize("case", [*ACCEPTED, *SECOND, *REFUSED], ids=lambda case: f"{case.number} {case.what}")
def test_input_is_used_with_a_warning_or_refused_in_a_sentence_and_nothing_is_left_behind(case, jaxsr, run_dir, tmp_path, request):
    if case not in REFUSED:
        expect_use(case, request.getfixturevalue("batches")[case.number])
        return
    path = case.make(tmp_path)
    before = snapshot(tmp_path)
    done = jaxsr("upscale", "-i", path, "-o", tmp_path / "out" / "x.nii.gz", "--model", run_dir, *case.words)
    expect_refusal(done, case.says)
    assert path.name in done.stderr
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("link", ["itself", "symlink", "hard link", "folder"])
def test_case_22_an_output_that_is_the_input_is_refused_and_the_input_stays_as_it_is(link, jaxsr, run_dir, tmp_path):
    source = tmp_path / "v.nii"
    nifti(tmp_path)
    output = {"itself": source, "folder": tmp_path}.get(link, tmp_path / "w.nii")
    if link == "symlink":
        output.symlink_to(source)
    elif link == "hard link":
        output.hardlink_to(source)
    before = snapshot(tmp_path)
    done = jaxsr("upscale", "-i", source, "-o", output, "--model", run_dir, "--overwrite")
    expect_refusal(done, "the output is the input; choose another -o")
    assert snapshot(tmp_path) == before


def test_case_8_the_orientation_of_a_file_changes_nothing_but_the_orientation(batches):
    images = [nib.as_closest_canonical(nib.load(batches[n].outputs[n])) for n in ("8a", "8b", "8c")]
    for other in images[1:]:
        np.testing.assert_array_equal(np.asarray(other.dataobj), np.asarray(images[0].dataobj))
        np.testing.assert_allclose(other.affine, images[0].affine, atol=1e-4)


def test_inspect_says_of_every_case_what_upscale_does(batches, jaxsr, tmp_path):
    """The same reading and the same checks: usable or not, the same warnings, the same shape; and not a line of it needs JAX."""
    first = batches["1"]
    refused = []
    for case in REFUSED:
        (tmp_path / case.number).mkdir()
        if not case.words:
            refused.append(case.make(tmp_path / case.number))
    done = jaxsr("inspect", *first.sources.values(), *refused, "--to-mm", MM, "--json", env={"JAX_PLATFORMS": "none such"})
    assert done.returncode == 1, done.stderr
    reports = json.loads(done.stdout)
    for report, number in zip(reports, first.sources, strict=False):
        assert report["usable"], report
        out = nib.load(first.outputs[number])
        assert report["output"]["shape"] == list(out.shape)
        assert report["notes"] == json.loads(first.outputs[number].with_name(f"{number}.json").read_text())["JaxSR"]["Notes"]
        np.testing.assert_allclose(report["output"]["voxel_size_mm"], out.header.get_zooms(), rtol=1e-5)
    for report, case in zip(reports[len(first.sources) :], [c for c in REFUSED if not c.words], strict=True):
        assert not report["usable"]
        assert re.search(case.says, report["problem"])
    lines = done.stderr.splitlines()
    assert lines[0] == f"jaxsr: {len(refused)} of {len(reports)} failed:"
    assert len(lines) == 1 + len(refused)
