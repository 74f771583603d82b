"""What is not a volume is refused in one sentence with the way out; what is one reads whatever its encoding."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from jaxsr.volume.io import VolumeError, read_volume

DATA = np.random.default_rng(0).integers(0, 1000, (16, 17, 18)).astype(np.int16)
AFFINE = np.diag([1.0, 1.2, 0.9, 1.0])


def saved(path, data=DATA, kind=nib.Nifti1Image, **header):
    image = kind(data, AFFINE)
    for field, value in header.items():
        image.header[field] = value
    image.to_filename(path)
    return path


def test_real_types_and_byte_orders_read_as_float32(tmp_path):
    for dtype in ("u1", "i1", ">i2", "<u2", ">i4", "u4", "i8", "u8", ">f4", "f8", "f4"):
        data = (DATA % 120).astype(dtype)
        path = tmp_path / "v.nii"
        nib.Nifti1Image(data, AFFINE, nib.Nifti1Header(endianness=">" if ">" in dtype else "<"), dtype=data.dtype).to_filename(path)
        volume = read_volume(path)
        assert volume.data.dtype == np.float32
        assert (volume.data == data).all(), dtype


FORMATS = [
    *[(nib.Nifti1Image, name) for name in ("v.nii", "v.nii.gz", "V.NII.GZ", "v.nii.bz2")],
    *[(nib.Nifti1Pair, name) for name in ("v.hdr", "v.img.gz")],
    *[(nib.MGHImage, name) for name in ("v.mgh", "v.mgz")],
    (nib.Nifti2Image, "v.nii"),
    (nib.Nifti2Pair, "v.img"),
]


@pytest.mark.parametrize("kind, name", FORMATS)
def test_formats_read_alike(tmp_path, kind, name):
    volume = read_volume(saved(tmp_path / name, kind=kind))
    assert (volume.data == DATA).all()
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.notes == ()


def test_analyze_reads_with_a_warning_about_left_and_right(tmp_path):
    volume = read_volume(saved(tmp_path / "v.img", kind=nib.AnalyzeImage))
    assert (volume.data[::-1] == DATA).all()
    assert "left and right are assumed" in volume.notes[0]


@pytest.mark.parametrize("slope, inter, expected", [(0, 5, DATA), (np.nan, np.nan, DATA), (2, -3, DATA * 2 - 3), (0.5, 0, DATA * 0.5)])
def test_slopes_are_read_by_the_standard(tmp_path, slope, inter, expected):
    path = saved(tmp_path / "v.nii")
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(raw)
    np.testing.assert_allclose(read_volume(path).data, expected, rtol=1e-6)


def test_an_intercept_that_is_no_number_is_refused(tmp_path):
    path = saved(tmp_path / "v.nii")
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([2, np.nan], "<f4").tobytes()
    path.write_bytes(raw)
    with pytest.raises(VolumeError, match=r"v\.nii: .*inter"):
        read_volume(path)


def test_trailing_axes_of_one_are_dropped_and_no_others(tmp_path):
    for extra in [(1,), (1, 1), (1, 1, 1, 1)]:
        assert read_volume(saved(tmp_path / "v.nii", DATA.reshape(*DATA.shape, *extra))).data.shape == DATA.shape
    with pytest.raises(VolumeError, match=r"1 × 17 × 18"):
        read_volume(saved(tmp_path / "v.nii", DATA[:1]))
    with pytest.raises(VolumeError, match=r"16 × 17 × 1 "):
        read_volume(saved(tmp_path / "v.nii", DATA[:, :, :1, None]))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_one_of_several_volumes_must_be_named(tmp_path, suffix):
    data = np.stack([DATA + 10 * k for k in range(6)], -1).reshape(*DATA.shape, 1, 2, 3, order="F")
    path = saved(tmp_path / f"v{suffix}", data)
    with pytest.raises(VolumeError, match=r"6 volumes.*--volume K, K from 0 to 5"):
        read_volume(path)
    assert (read_volume(path, volume=4).data == DATA + 40).all()
    for wrong in (6, -1):
        with pytest.raises(VolumeError, match=f"no volume {wrong}"):
            read_volume(path, volume=wrong)


def test_the_only_volume_may_be_named(tmp_path):
    assert (read_volume(saved(tmp_path / "v.nii"), volume=0).data == DATA).all()


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize("data, message", [(DATA.astype(np.complex64), "complex"), (np.zeros(DATA.shape, RGB), "RGB")])
def test_voxels_that_are_not_real_numbers_are_refused(tmp_path, data, message):
    with pytest.raises(VolumeError, match=message):
        read_volume(saved(tmp_path / "v.nii", data))


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def _nifti() -> bytes:
    return nib.Nifti1Image(DATA, AFFINE).to_bytes()


def _flipped(data: bytes, at: int) -> bytes:
    damaged = bytearray(data)
    damaged[at] ^= 0x10
    return bytes(damaged)


@pytest.mark.parametrize("name, content, message", [
    ("v.nii", b"", "empty"),
    ("v.nii.gz", b"", "empty"),
    ("v.nii", b"hello, this is a text\n" * 50, "not a volume in a format that is read"),
    ("v.txt", b"hello, this is a text\n" * 50, "not a volume in a format that is read"),
    ("v.nii.gz", gz(b"hello, this is a text\n" * 50), "not a volume in a format that is read"),
    ("v.nii", bytes(128) + b"DICM" + bytes(500), "dcm2niix"),
    ("v.dcm", bytes(500), "dcm2niix"),
    ("v.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ("v.nii", gz(_nifti()), r"renamed.*never unpacked"),
    ("v.nii.gzip", gz(_nifti()), r"renamed.*never unpacked"),
    ("v.nii.gz", _nifti(), r"unpacked already.*damaged"),
    ("v.mgz", _nifti(), r"unpacked already \(name it \.mgh\)"),
    ("v.nii", _nifti()[:2000], r"truncated.*10144 bytes.*has 2000"),
    ("v.nii", _nifti()[:200], None),
    ("v.nii.gz", gz(_nifti())[:-3000], "truncated"),
    ("v.nii.gz", gz(_nifti())[:-3], "truncated"),
    ("v.nii.gz", gz(_nifti())[:100], None),
    ("v.nii.gz", _flipped(gz(_nifti()), -6), "damaged"),
    ("v.nii.gz", _flipped(gz(_nifti()), 5000), "damaged"),
    ("v.nii.gz", gz(_nifti()[:3000]), None),
    ("v.hdr", nib.Nifti1Pair(DATA, AFFINE).header.binaryblock, r"v\.img.*missing"),
], ids=range(21))  # fmt: skip
def test_what_is_not_a_whole_volume_is_refused_in_one_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VolumeError, match=message) as raised:
        read_volume(path)
    said = str(raised.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert len(said) < 400 + len(str(path))


def test_a_header_that_promises_more_than_the_file_can_hold_is_refused_before_anything_is_allocated(tmp_path):
    raw = bytearray(_nifti())
    raw[42:48] = np.array([32000, 32000, 32000], "<i2").tobytes()
    for name, content in (("v.nii", bytes(raw)), ("v.nii.gz", gz(bytes(raw)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VolumeError, match="truncated: the header promises"):
            read_volume(tmp_path / name)


def test_a_volume_that_does_not_fit_in_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxsr.volume.decode.free_memory", lambda: 10_000)
    with pytest.raises(VolumeError, match=r"16 × 17 × 18 voxels needs.*larger machine"):
        read_volume(saved(tmp_path / "v.nii"))


def test_what_is_not_a_file_is_refused(tmp_path):
    with pytest.raises(VolumeError, match=r"absent\.nii: no such file"):
        read_volume(tmp_path / "absent.nii")
    with pytest.raises(VolumeError, match=r"a folder.*dcm2niix"):
        read_volume(tmp_path)
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "annex" / "object")
    with pytest.raises(VolumeError, match="git annex get"):
        read_volume(tmp_path / "link.nii.gz")


def test_formats_nibabel_knows_and_we_do_not_are_refused_by_name(tmp_path):
    image = nib.Cifti2Image(
        np.zeros((2, 16 * 17 * 18), np.float32),
        (nib.cifti2.ScalarAxis(["a", "b"]), nib.cifti2.BrainModelAxis.from_mask(np.ones(DATA.shape), affine=AFFINE)),
    )
    image.to_filename(tmp_path / "v.dscalar.nii")
    with pytest.raises(VolumeError, match="Cifti2"):
        read_volume(tmp_path / "v.dscalar.nii")
