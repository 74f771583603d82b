"""Laws of geometry from file to file: reading, slicing, padding, batching, fusing and writing move nothing.

The method is the identity where a law is about places, and one that mixes neighbours and noise where it is about equivariance.
"""

from itertools import permutations, product

import jax
import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxsr.diffusion.sampling import draw_noise
from jaxsr.methods.base import Request, UpscaleOutput
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.engine import Engine
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import Volume, read_volume, straighten, write_volume
from jaxsr.volume.orientation import Turn, codes_of, from_ras, turn_from

ALL_48 = [codes_of(Turn(order, flip)) for order in permutations(range(3)) for flip in product((False, True), repeat=3)]
SUFFIXES = [".nii", ".nii.gz", ".mgh", ".mgz"]
ONE_STEP = Request(steps=1)


@pytest.fixture(scope="module")
def identity(identity_method):
    return Engine(identity_method, {}, make_mesh(), batch_size=8)


class Lopsided:
    """A method whose answer depends on everything: neighbours, each in its own way, and the noise of its slice."""

    multiple = 8
    default_request = ONE_STEP
    kernel = np.random.default_rng(1).normal(size=(3, 3, 1, 1)).astype(np.float32)

    def upscale(self, variables, condition, keys, request):
        mixed = jax.lax.conv_general_dilated(condition.low, self.kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return UpscaleOutput(mixed + draw_noise(keys, 0, condition.low.shape[1:]), {})


@pytest.fixture(scope="module")
def lopsided():
    return Engine(Lopsided(), {}, make_mesh(), batch_size=8)


def scanner(voxel=(2.0, 2.0, 2.0), degrees=(6, -9, 4)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * voxel
    affine[:3, 3] = (-31.3, 12.7, 7.9)
    return affine


def head(shape=(17, 20, 23)):
    """A textured ball in noise, every voxel its own value."""
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    texture = 600 + 200 * np.sin(5 * points[0]) * np.cos(4 * points[1] + points[2])
    ball = np.where((points**2).sum(0) < 0.7, texture, 10.0)
    return (ball + np.random.default_rng(0).normal(0, 5, shape)).astype(np.float32)


def write_as(path, data, affine, codes):
    """`data` in RAS+ written with its axes in the order and direction of `codes`, by nibabel alone."""
    turned, affine = from_ras(data, affine, turn_from(codes))
    image = (nib.MGHImage if path.suffix in (".mgh", ".mgz") else nib.Nifti1Image)(np.ascontiguousarray(turned), affine)
    if isinstance(image, nib.Nifti1Image):
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
    image.to_filename(path)
    return path


def through(engine, source, output, **options):
    """Reads `source`, upscales, writes `output`: what the command does, without its sidecar."""
    write_volume(output, engine.upscale(straighten(read_volume(source)), ONE_STEP, **options).volume)
    return nib.load(output)


@pytest.mark.parametrize("codes", ALL_48, ids="".join)
def test_an_identity_returns_the_file_in_every_orientation(identity, tmp_path, codes):
    suffix = SUFFIXES[ALL_48.index(codes) % 4]
    source = write_as(tmp_path / f"in{suffix}", head(), scanner(), codes)
    before, after = nib.load(source), through(identity, source, tmp_path / f"out{suffix}")
    window = fit_window(head())
    np.testing.assert_allclose(after.get_fdata(), before.get_fdata(), rtol=0, atol=1e-6 * (window.high - window.low))
    np.testing.assert_allclose(after.affine, before.affine, atol=2e-5)
    assert nib.aff2axcodes(after.affine) == nib.aff2axcodes(before.affine) == codes


@pytest.mark.parametrize("to_mm", [None, 1.5])
def test_upscaling_a_reoriented_volume_is_reorienting_the_upscaled_one(lopsided, tmp_path, to_mm):
    """Whatever the file's axes, a method sees RAS+: the answers differ by the rounding of a float32 affine at most."""
    expected = None
    for codes in ALL_48[:: 1 if to_mm is None else 5]:
        source = write_as(tmp_path / "in.nii", head(), scanner(), codes)
        out = read_volume_of(through(lopsided, source, tmp_path / "out.nii", to_mm=to_mm))
        expected = out if expected is None else expected
        np.testing.assert_allclose(out.data, expected.data, rtol=0, atol=1e-4 * np.abs(expected.data).max(), err_msg=str(codes))
        np.testing.assert_allclose(out.affine, expected.affine, atol=1e-4)
        assert nib.load(tmp_path / "out.nii").shape == from_ras(out.data, out.affine, turn_from(codes))[0].shape


def read_volume_of(image):
    return read_volume(image.get_filename())


def blob(shape, affine, centre, width=6.0):
    """A Gaussian of standard deviation `width` mm at scanner position `centre`."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    distance = ((nib.affines.apply_affine(affine, index) - centre) ** 2).sum(-1)
    return (1000 * np.exp(-distance / (2 * width**2))).astype(np.float32)


def found(image):
    """Scanner position of the blob's centroid."""
    data = np.clip(image.get_fdata(), 0, None) ** 2
    index = np.stack(np.meshgrid(*[np.arange(n) for n in data.shape], indexing="ij"), -1)
    return nib.affines.apply_affine(image.affine, (data[..., None] * index).sum((0, 1, 2)) / data.sum())


GEOMETRIES = {
    "isotropic": ((2.0, 2.0, 2.0), (0, 0, 0), (40, 44, 36)),
    "oblique": ((2.0, 2.0, 2.0), (6, -9, 4), (40, 44, 36)),
    "anisotropic": ((1.1, 1.3, 3.1), (3, 2, -8), (71, 62, 25)),
    "odd": ((1.9, 2.1, 2.3), (-12, 4, 7), (41, 37, 33)),
    "nearly 45 degrees": ((2.0, 2.0, 2.0), (0, 0, 44.9), (40, 40, 40)),
}


@pytest.mark.parametrize("suffix", [".nii.gz", ".mgz"])
@pytest.mark.parametrize("to_mm", [0.9, 1.0, 1.3, 2.0, 3.0])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_landmark_keeps_its_scanner_coordinate_at_every_voxel_size(identity, tmp_path, geometry, to_mm, suffix):
    voxel, degrees, shape = GEOMETRIES[geometry]
    affine = scanner(voxel, degrees)
    centre = nib.affines.apply_affine(affine, (np.array(shape) - 1) * (0.47, 0.55, 0.52))
    source = write_as(tmp_path / f"in{suffix}", blob(shape, affine, centre), affine, ("L", "P", "S"))
    out = through(identity, source, tmp_path / f"out{suffix}", to_mm=to_mm)
    np.testing.assert_allclose(found(out), centre, atol=0.03)
    np.testing.assert_allclose(nib.affines.voxel_sizes(out.affine), to_mm, rtol=1e-5)


@pytest.mark.parametrize("to_mm", [1.0, 2.0])
def test_a_sheared_volume_is_straightened_and_its_landmark_stays(identity, tmp_path, to_mm):
    """Case 5: read, warned, resampled to right angles; what is written has a valid qform."""
    affine = scanner()
    affine[:3, 2] += 0.3 * affine[:3, 1]
    centre = nib.affines.apply_affine(affine, (19.2, 23.1, 17.4))
    image = nib.Nifti1Image(blob((40, 44, 36), affine, centre), None)
    image.set_sform(affine, 1)
    image.header.set_zooms(nib.affines.voxel_sizes(affine))
    image.header.set_xyzt_units("mm")
    image.to_filename(tmp_path / "in.nii.gz")
    assert any("sheared" in note for note in read_volume(tmp_path / "in.nii.gz").notes)
    out = through(identity, tmp_path / "in.nii.gz", tmp_path / "out.nii.gz", to_mm=to_mm)
    np.testing.assert_allclose(found(out), centre, atol=0.05)
    directions = out.affine[:3, :3] / to_mm
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(out.get_qform(coded=True)[0], out.get_sform(coded=True)[0], atol=1e-4)


@pytest.mark.parametrize("codes", ALL_48[::9], ids="".join)
def test_the_header_says_millimetres_and_both_forms_the_same(identity, tmp_path, codes):
    source = write_as(tmp_path / "in.nii", head(), scanner(), codes)
    header = through(identity, source, tmp_path / "out.nii.gz", to_mm=1.7).header
    (sform, sform_code), (qform, qform_code) = header.get_sform(coded=True), header.get_qform(coded=True)
    assert (sform_code, qform_code) == (1, 1)
    np.testing.assert_allclose(sform, qform, atol=2e-3)  # a quaternion in float32 turns by as much at the far corner
    assert header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(header.get_zooms(), 1.7, rtol=1e-6)


def test_turning_to_ras_is_idempotent_at_every_angle(tmp_path):
    """Case 7: an axis at 45° may go either way, but a volume that was written and read again goes the same way."""
    for degrees in (44.9, 44.999999, 45.0, 45.000001, 45.1, 90.0, 135.0):
        affine = scanner(degrees=(0, 0, degrees))
        write_as(tmp_path / "v.nii", head(), affine, ("R", "A", "S"))
        once = read_volume(tmp_path / "v.nii")
        write_volume(tmp_path / "again.nii", once)
        twice = read_volume(tmp_path / "again.nii")
        np.testing.assert_array_equal(twice.data, once.data)
        assert twice.orientation == once.orientation


def test_the_field_of_view_keeps_its_centre_and_its_extent_to_half_a_voxel():
    """Cases 27 and 28: a side has ⌊n v / v' + ½⌋ voxels, always the same, and grows as much at one end as at the other."""
    from jaxsr.volume.geometry import Grid, target_grid

    rng = np.random.default_rng(0)
    for _ in range(200):
        source = Grid(tuple(int(n) for n in rng.integers(16, 300, 3)), scanner(rng.uniform(0.4, 4, 3), rng.uniform(-40, 40, 3)))
        to_mm = rng.uniform(0.5, 3)
        target = target_grid(source, to_mm)
        np.testing.assert_allclose(target.centre, source.centre, atol=1e-4)
        extent = np.array(source.shape) * source.voxel_size
        assert (np.abs(np.array(target.shape) * to_mm - extent) <= to_mm * 0.502).all()


def test_a_real_head_through_the_identity_is_itself(identity, mri, tmp_path):
    for name in ("fnndsc_adult/T1w_MEMPRAGE_defaced.nii.gz", "freesurferformats/brain.mgz"):
        volume = read_volume(mri / name)
        result = identity.upscale(volume, ONE_STEP)
        np.testing.assert_allclose(result.volume.data, volume.data, rtol=0, atol=1e-6 * (result.window.high - result.window.low))
        write_volume(tmp_path / "out.mgz", Volume(result.volume.data, result.volume.affine, result.volume.orientation))
        np.testing.assert_allclose(nib.load(tmp_path / "out.mgz").affine, nib.load(mri / name).affine, atol=2e-4)
