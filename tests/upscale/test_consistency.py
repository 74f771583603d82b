"""Laws of the data-consistency map: the truth leaves noise, what was invented stands out where it is, and nothing else does."""

import functools

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from jaxsr.data.acquired import simulate
from jaxsr.physics.protocol import Acquisition, load_acquisition
from jaxsr.upscale.consistency import FAR, Consistency, as_scanned, consistency_map
from jaxsr.volume.foreground import foreground
from jaxsr.volume.geometry import Grid, resample, target_grid
from jaxsr.volume.intensity import filling
from jaxsr.volume.io import Volume, VolumeError
from jaxsr.volume.noise import estimate_noise

TURNED = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, -0.1), [-30.0, 12.0, 7.0])
SIGMA = 10.0
PLAIN = Acquisition(name="plain", voxel_size=(1.0, 1.0, 1.0))  # sampling alone
LESION = np.array([40, 30, 31])  # voxels of the truth

ACQUISITIONS = {
    "1.5T": ("1.5T", []),
    "biased": ("1.5T", ["bias=[0.2,0.2]"]),
    "coils": ("3T", ["coils=8", "snr=25"]),
    "64mT": ("64mT", ["gamma=1", "blur=1"]),
    "thick-slice": ("thick-slice", ["voxel_size=[1,1,4]", "gap=1"]),
}


@functools.cache
def head(shape=(72, 76, 70)):
    """Two tissues with folds, in air, 1 mm, in an oblique scanner."""
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt((points**2).sum(0))
    folds = np.sin(14 * points[0]) * np.cos(11 * points[1]) + np.sin(12 * points[2])
    soft = 1 / (1 + np.exp(-40 * (0.75 - radius)))
    return Volume((soft * (600 + 250 * np.tanh(3 * folds))).astype(np.float32), TURNED)


@functools.cache
def scan(name):
    source, settings = ACQUISITIONS[name]
    acquisition = load_acquisition(source, settings)
    return simulate(head(), acquisition, jax.random.key(5)), acquisition


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_the_truth_of_a_simulated_scan_leaves_noise(name):
    """z has standard deviation 1 where the signal is well above the noise, less where it is not: magnitudes of noise vary by 0.655 σ."""
    low, acquisition = scan(name)
    found = consistency_map(low, head(), Consistency(acquisition))
    assert found.facts["SigmaFrom"] == "air"
    assert 0.93 < found.facts["RmsInHead"] < 1.03
    assert found.facts["ShareBeyond3InHead"] < 0.005
    z, inside = found.map.data, foreground(low.data)
    assert abs(z[inside].mean()) < 0.06
    assert abs(z[~inside].mean()) < 0.1
    assert z[~inside].std() == pytest.approx(0.655, abs=0.06)
    np.testing.assert_array_equal(found.map.affine, low.affine)


@pytest.mark.parametrize("name", ["1.5T", "thick-slice", "biased"])
def test_a_lesion_that_was_invented_is_flagged_at_its_place_and_nothing_else_is(name):
    low, acquisition = scan(name)
    away = np.linalg.norm(np.indices(head().data.shape) - LESION[:, None, None, None], axis=0)
    painted = Volume(head().data + 400 * (away < 4).astype(np.float32), head().affine)
    found, without = (consistency_map(low, output, Consistency(acquisition)).map for output in (painted, head()))
    place = np.linalg.solve(low.affine, head().affine) @ [*LESION, 1]
    highest = np.unravel_index(found.data.argmax(), found.data.shape)
    assert found.data.max() > 8  # brighter than measured: above zero
    np.testing.assert_allclose(highest, place[:3], atol=2)
    far = np.linalg.norm((np.indices(low.data.shape) - place[:3, None, None, None]) * np.reshape(low.voxel_size, (3, 1, 1, 1)), axis=0) > 15
    assert np.abs(found.data - without.data)[far].max() < 1
    assert (np.abs(found.data[far]) > FAR).mean() < 0.005


def test_what_the_scan_cannot_see_the_map_does_not_show():
    """Stripes finer than the acquired voxels: H removes them."""
    low, acquisition = scan("1.5T")
    stripes = 100 * np.cos(np.pi * np.arange(head().data.shape[0]))[:, None, None]
    striped = Volume((head().data + stripes).astype(np.float32), head().affine)
    one, other = (consistency_map(low, output, Consistency(acquisition)).map.data for output in (striped, head()))
    np.testing.assert_allclose(one, other, atol=0.02)


def test_the_noise_that_is_told_is_the_one_that_counts():
    low, acquisition = scan("1.5T")
    given = consistency_map(low, head(), Consistency(acquisition, sigma=100.0))
    assert given.facts["SigmaFrom"] == "given"
    assert given.facts["RmsInHead"] < 0.5


@pytest.mark.parametrize("sigma", [None, SIGMA])
@pytest.mark.parametrize("size", [(2.0, 2.0, 2.0), (1.5, 2.0, 1.0), (0.5, 2.0, 2.0)])
def test_an_output_coarser_than_the_input_is_compared_at_its_own_voxel_size_in_units_of_the_noise_that_is_left(size, sigma):
    """The truth leaves z of standard deviation 1, σ told or found: what truncation keeps of white noise is σ √(Π v / v')."""
    fine = head()
    channels = SIGMA * np.random.default_rng(0).normal(size=(2, *fine.data.shape))
    noisy = np.hypot(fine.data + channels[0], channels[1]).astype(np.float32)
    grid = target_grid(fine.grid, size)
    output = Volume(resample(fine.data, fine.grid, grid, "kspace"), grid.affine)
    found = consistency_map(Volume(noisy, fine.affine), output, Consistency(PLAIN, sigma))
    compared = np.maximum(size, 1.0)
    np.testing.assert_allclose(found.map.voxel_size, compared, rtol=0.05)
    assert found.facts["Notes"][0].startswith("the output is coarser than the input along some axis: both were compared at ")
    assert found.facts["Sigma"] == pytest.approx(SIGMA, rel=0.02)
    assert found.facts["RmsInHead"] == pytest.approx(1, abs=0.05)
    assert abs(found.map.data.mean()) < 0.1  # with the air: truncation keeps the mean of magnitudes


def test_grids_that_do_not_fit_are_refused_in_a_sentence():
    low, acquisition = scan("1.5T")
    turned = Volume(head().data, np.eye(4))
    with pytest.raises(VolumeError, match="cannot be compared with the input: the grids' axes are not parallel"):
        consistency_map(low, turned, Consistency(acquisition))


@pytest.mark.parametrize("coarser", [False, True])
def test_filling_is_no_measurement(coarser):
    """Where somebody set the input to exactly 0 the map is 0, whatever the output holds there."""
    low, acquisition = scan("1.5T")
    stripped = Volume(np.where(foreground(low.data), low.data, 0), low.affine)
    output = Volume(head().data + 50, head().affine)
    if coarser:
        grid = target_grid(low.grid, 2.5)
        output = Volume(resample(output.data, output.grid, grid, "kspace"), grid.affine)
    found = consistency_map(stripped, output, Consistency(acquisition, sigma=10.0))
    cleared = resample((stripped.data == 0).astype(np.float32), low.grid, found.map.grid, "linear") > 0.999
    assert cleared.mean() > 0.2
    assert not found.map.data[cleared].any()
    assert found.map.data[~cleared].any()


@pytest.mark.parametrize("told", [False, True])
def test_where_air_was_cleared_but_not_to_one_value_the_truth_still_leaves_noise(told):
    """No floor of noise is looked for in such air, whether σ comes from the tissue or is told."""
    low, acquisition = scan("1.5T")
    sigma = estimate_noise(low.data).sigma if told else None
    faint = 1e-3 * np.random.default_rng(0).normal(size=low.data.shape) ** 2
    cleared = Volume(np.where(foreground(low.data), low.data, faint).astype(np.float32), low.affine)
    z = consistency_map(cleared, head(), Consistency(acquisition, sigma))
    assert z.facts["SigmaFrom"] == ("given" if told else "tissue")
    assert abs(z.map.data[~foreground(low.data)].mean()) < 0.2


def test_sigma_of_tissue_is_told_to_be_an_upper_bound():
    """What anatomy is left in its coefficients adds to σ and takes from z."""
    low, acquisition = scan("1.5T")
    stripped = Volume(np.where(foreground(low.data), low.data, 0), low.affine)
    one, other = (consistency_map(volume, head(), Consistency(acquisition)) for volume in (stripped, low))
    assert (one.facts["SigmaIs"], other.facts["SigmaIs"]) == ("upper bound", "estimate")
    assert "both numbers are lower bounds" in one.sentence
    assert "lower bounds" not in other.sentence
    assert one.facts["Sigma"] > 0.95 * other.facts["Sigma"]


def test_an_output_that_repeats_the_scan_lies_well_below_the_truth_and_that_is_said():
    low, acquisition = scan("1.5T")
    copied = Volume(resample(low.data, low.grid, head().grid, "kspace"), head().affine)
    found = consistency_map(low, copied, Consistency(acquisition))
    assert found.facts["RmsInHead"] < 0.5
    assert "well below 1: the output repeats the scan's own noise" in found.sentence


def test_the_common_value_of_an_integer_scans_air_is_measured():
    """More than 5 % of the voxels hold it, and it is no filling: the map is not 0 there, and z as large as before rounding."""
    low, acquisition = scan("1.5T")
    scale = 3 / estimate_noise(low.data).sigma
    smooth = Volume(low.data * np.float32(scale), low.affine)
    rounded = Volume(np.rint(smooth.data), low.affine)
    assert filling(rounded.data) is not None
    output = Volume(head().data * np.float32(scale), head().affine)
    one, other = (consistency_map(volume, output, Consistency(acquisition)) for volume in (rounded, smooth))
    assert one.facts["SigmaFrom"] == "air"
    assert one.facts["RmsInHead"] == pytest.approx(other.facts["RmsInHead"], rel=0.03)
    assert (one.map.data == 0).mean() < 0.01


def test_the_acquisition_takes_the_voxels_of_the_scan_and_its_slices_lie_across_the_coarsest():
    declared = load_acquisition("thick-slice", ["voxel_size=[1,1,4]", "gap=1", "motion.jumps=2"])
    scanned = as_scanned(declared, (5.0, 0.9, 0.9))
    assert scanned.slice_axis == 0
    assert scanned.spacing == pytest.approx((5.0, 0.9, 0.9))
    assert scanned.voxel_size[0] == pytest.approx(4.0)  # four fifths of the distance of slices, as declared
    assert scanned.motion is None
    assert scanned.snr is None


def test_an_output_whose_field_of_view_is_half_a_voxel_off_is_compared_all_the_same():
    """As `upscale` leaves it, where a voxel size does not divide the field of view."""
    low, acquisition = scan("1.5T")
    grid = target_grid(low.grid, 0.87)
    assert any(abs(n * 0.87 - m * v) > 0.1 for n, m, v in zip(grid.shape, low.data.shape, low.voxel_size, strict=True))
    output = Volume(resample(head().data, Grid(head().data.shape, head().affine), grid), grid.affine)
    assert consistency_map(low, output, Consistency(acquisition)).facts["RmsInHead"] < 1.05


def test_signed_images_have_no_magnitude():
    """A z-scored volume is compared as it is: H is linear, and keeps constants."""
    low, acquisition = scan("1.5T")
    z = [Volume((volume.data - 300) / 200, volume.affine) for volume in (low, head())]
    found = consistency_map(z[0], z[1], Consistency(acquisition.model_copy(update={"bias": (0.0, 0.0)})))
    inside = foreground(low.data)
    assert np.std(found.map.data[inside]) < 1.5
    assert jnp.isfinite(found.map.data).all()
