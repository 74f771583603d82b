"""Registration finds the displacement that was applied, repeats itself, and says so where there is nothing to find."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from jaxsr.data.anatomy import render
from jaxsr.data.registration import register, registered
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.geometry import Grid, resample, target_grid
from jaxsr.volume.io import Volume, read_volume

pytestmark = pytest.mark.reference
pytest.importorskip("SimpleITK")

MM = 6.0  # so every level is the coarsest: what a search costs
SHAPE = (30, 36, 30)


def centred(shape, mm):
    affine = np.diag([mm, mm, mm, 1.0])
    affine[:3, 3] = -mm / 2 * (np.array(shape) - 1)
    return affine


AFFINE = centred(SHAPE, MM)


def displaced(mm, degrees, centre=(0, 0, 0)):
    """Rotation about a centre, then a shift: `[4, 4]`, RAS mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = np.array(mm) + centre - matrix[:3, :3] @ centre
    return matrix


def apart(found, true, centre=(0, 0, 0)):
    """Millimetres at the centre, the most at the corners of a box of 140 mm, and degrees."""
    between = np.linalg.solve(true, found)
    box = np.array(np.meshgrid(*[(-70, 70)] * 3)).reshape(3, -1) + np.reshape(centre, (3, 1))
    moved = np.linalg.norm(between[:3, :3] @ box + between[:3, 3:] - box, axis=0)
    middle = np.linalg.norm(between[:3, :3] @ centre + between[:3, 3] - centre)
    return middle, moved.max(), np.degrees(Rotation.from_matrix(between[:3, :3]).magnitude())


def contrasts(shape, mm):
    """One anatomy as T1w and T2w, with Rician noise."""
    rng = np.random.default_rng(0)

    def volume(contrast):
        image = np.asarray(render(jax.random.key(3), shape, mm, contrast).image)
        noise = 0.03 * rng.normal(size=(2, *shape))
        return Volume(np.hypot(image + noise[0], noise[1]).astype(np.float32), centred(shape, mm))

    return volume("T1w"), volume("T2w")


@pytest.fixture(scope="module")
def head():
    return contrasts(SHAPE, MM)


@pytest.fixture(scope="module")
def sharp():
    return contrasts((72, 88, 72), 2.5)


@pytest.fixture(scope="module")
def found(head):
    """A displacement, and what was found of it."""
    fixed, other = head
    true = displaced((8, -5, 4), (6, -4, 5))
    return true, register(replace(other, affine=true @ other.affine), fixed)


def test_two_contrasts_of_one_anatomy_are_found_to_a_fraction_of_their_voxels(found):
    middle, most, angle = apart(found[1].matrix, found[0])
    assert middle < 0.5
    assert most < 1
    assert angle < 0.4
    assert found[1].overlap > 0.9


@pytest.mark.slow
def test_a_head_that_the_header_has_on_its_side_is_found(head):
    fixed, other = head
    true = displaced((60, 0, -40), (0, 0, 90))
    assert apart(register(replace(other, affine=true @ other.affine), fixed).matrix, true)[1] < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "mm, degrees",
    [
        ((0, 0, 0), (0, 0, 0)),
        ((8, -5, 4), (6, -4, 5)),
        ((25, 30, -20), (25, -20, 30)),
        ((60, 0, -40), (0, 0, 90)),
        ((0, 0, 0), (180, 0, 0)),
    ],
)
def test_two_contrasts_of_one_anatomy_are_found_to_a_quarter_millimetre(sharp, mm, degrees):
    """From whatever start: also where the header has the head on its side, or upside down."""
    fixed, other = sharp
    true = displaced(mm, degrees)
    found = register(replace(other, affine=true @ other.affine), fixed)
    middle, most, angle = apart(found.matrix, true)
    assert middle < 0.15
    assert most < 0.3
    assert angle < 0.15
    assert found.overlap > 0.9


@pytest.mark.slow
def test_an_affine_displacement_is_found_and_only_there(sharp):
    fixed, other = sharp
    true = displaced((8, -5, 4), (6, -4, 5)) @ np.array([[1.03, 0.02, 0, 0], [0, 0.97, 0, 0], [0, 0, 1.02, 0], [0, 0, 0, 1]])
    moving = replace(other, affine=true @ other.affine)
    assert apart(register(moving, fixed, kind="affine").matrix, true)[1] < 0.5
    assert apart(register(moving, fixed).matrix, true)[1] > 2


@pytest.mark.slow
def test_a_coarse_noisy_scan_is_found_on_a_sharp_one(sharp):
    """As between field strengths: 4 mm and a signal-to-noise ratio of about 6 against 2.5 mm."""
    fixed, other = sharp
    grid = target_grid(other.grid, 4.0)
    noise = 0.1 * np.random.default_rng(1).normal(size=(2, *grid.shape))
    low = np.hypot(resample(other.data, other.grid, grid, "kspace") + noise[0], noise[1]).astype(np.float32)
    true = displaced((8, -5, 4), (6, -4, 5))
    assert apart(register(Volume(low, true @ grid.affine), fixed).matrix, true)[1] < 1


@pytest.mark.slow
def test_what_was_cut_out_is_no_anatomy(sharp):
    """Different wedges set to zero in both, as by defacing, move the result by no more than half a millimetre."""
    fixed, other = (replace(volume, data=volume.data.copy()) for volume in sharp)
    fixed.data[:, 55:, :32] = 0
    other.data[:, 62:, :40] = 0
    true = displaced((8, -5, 4), (6, -4, 5))
    assert apart(register(replace(other, affine=true @ other.affine), fixed).matrix, true)[1] < 0.5


def test_it_repeats_itself_bit_for_bit(head, found):
    fixed, other = head
    true, first = found
    second = register(replace(other, affine=true @ other.affine), fixed)
    assert first.matrix.tobytes() == second.matrix.tobytes()
    assert first.metric == second.metric


def noise(seed):
    return Volume(np.random.default_rng(seed).random(SHAPE, np.float32), AFFINE)


def test_noise_is_no_anatomy(head):
    with pytest.raises(VolumeError, match="volumes share"):
        register(*(replace(noise(seed), data=noise(seed).data[:16, :16, :16]) for seed in (0, 1)))
    with pytest.raises(VolumeError, match="volumes share"):
        register(noise(0), head[0])


def test_the_top_and_the_bottom_of_a_head_have_nothing_in_common(head):
    fixed, other = head
    top = Volume(fixed.data[:, :, 18:].copy(), AFFINE)
    bottom = Volume(other.data[:, :, :12].copy(), AFFINE)
    with pytest.raises(VolumeError, match="the volumes share"):
        register(bottom, top)


@pytest.mark.slow
def test_a_scaling_no_head_has_is_refused(head):
    fixed, other = head
    with pytest.raises(VolumeError, match="scales by"):
        register(replace(other, affine=np.diag([1.3, 1.3, 1.3, 1]) @ other.affine), fixed, kind="affine")


def test_a_mask_of_another_grid_is_refused(head):
    with pytest.raises(VolumeError, match="the mask has shape"):
        register(head[1], head[0], mask=np.ones((3, 3, 3), bool))


def smooth(points):
    x, y, z = np.moveaxis(points, -1, 0)
    return (10 + np.cos(x / 12) + np.sin(y / 14) * np.cos(z / 13)).astype(np.float32)


def points_of(grid):
    return np.moveaxis(np.indices(grid.shape), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def test_registered_reads_the_moving_volume_through_the_matrix():
    """A function of space, displaced, and brought back to a grid of another orientation and voxel size."""
    true = displaced((8, -5, 4), (6, -4, 5))
    source = Grid((60, 62, 64), np.diag([2.0, 2.1, 1.9, 1.0]) @ displaced((-30, -30, -32), (0, 0, 0)))
    moving = Volume(smooth(points_of(source)), true @ source.affine)
    target = Grid((20, 22, 18), displaced((-20, -22, -18), (3, 9, -5)) @ np.diag([2.0, 1.5, 1.8, 1.0]))
    np.testing.assert_allclose(registered(moving, true, target), smooth(points_of(target)), atol=0.01)


def test_registered_fills_what_the_moving_volume_does_not_show():
    moving = Volume(np.random.default_rng(0).random((8, 8, 8), np.float32) + 1, np.eye(4))
    target = Grid((8, 8, 8), displaced((6, 0, 0), (0, 0, 0)))
    assert (registered(moving, np.eye(4), target)[3:] == moving.data.min()).all()
    assert (registered(moving, np.eye(4), target, fill=-5)[3:] == -5).all()


def test_registered_does_not_alias_where_the_grid_is_coarser():
    """Stripes of one voxel, read about every fourth, vanish instead of turning into wide ones."""
    stripes = np.broadcast_to((np.arange(64) % 2)[:, None, None], (64, 64, 64)).astype(np.float32)
    coarse = registered(Volume(stripes, np.eye(4)), np.eye(4), Grid((12, 12, 12), np.diag([4.1, 4.1, 4.1, 1]) + np.eye(4, k=3) * 8))
    assert np.abs(coarse - 0.5).max() < 0.05


def real(mri, first):
    pair = {"T1w": "T1w_MEMPRAGE_defaced.nii.gz", "T2w": "T2w_FSE_axial_thick_defaced.nii.gz"}
    return read_volume(mri / "fnndsc_adult" / pair.pop(first)), read_volume(mri / "fnndsc_adult" / pair.popitem()[1])


@pytest.mark.parametrize(
    "fixed, mm, degrees",
    [
        ("T2w", (8, -5, 4), (6, -4, 5)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("T1w", (8, -5, 4), (6, -4, 5)),
                *((fixed, (-12, 9, 15), (-10, 8, 12)) for fixed in ("T1w", "T2w")),
                *((fixed, (30, -20, 25), (20, -15, 18)) for fixed in ("T1w", "T2w")),
            ]
        ),
    ],
)
def test_a_displacement_applied_to_a_real_pair_is_recovered(mri, fixed, mm, degrees):
    """T1w of 1.15 mm and T2w slices 2.5 mm thick of one person, both defaced: to 0.5 mm at the centre and 0.5°, both ways round."""
    still, moving = real(mri, fixed)
    true = displaced(mm, degrees, moving.grid.centre)
    before = register(moving, still).matrix
    after = register(replace(moving, affine=true @ moving.affine), still).matrix
    middle, most, angle = apart(after, true @ before, still.grid.centre)
    assert middle < 0.5
    assert angle < 0.5
    assert most < 1
    # They were scanned one after the other: what the header says is nearly right.
    assert apart(before, np.eye(4), still.grid.centre)[0] < 3


@pytest.mark.slow
def test_the_edges_of_two_contrasts_lie_on_each_other(sharp):
    """After registration the outlines of the head agree where they did not before."""
    fixed, other = sharp
    moving = replace(other, affine=displaced((8, -5, 4), (6, -4, 5)) @ other.affine)
    registration = register(moving, fixed)
    outline = lambda data: ndimage.gaussian_gradient_magnitude(data, 1.0).ravel()  # noqa: E731
    agreement = lambda matrix: np.corrcoef(outline(fixed.data), outline(registered(moving, matrix, fixed.grid)))[0, 1]  # noqa: E731
    assert agreement(registration.matrix) > agreement(np.eye(4)) + 0.2
