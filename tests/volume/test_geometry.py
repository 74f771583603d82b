"""Laws of grids and of resampling between them."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from jaxsr.volume.geometry import Grid, interpolation_matrix, resample, resample_oblique, straight_grid, target_grid

KINDS = ["nearest", "linear", "cubic", "kspace"]
SIZES = [0.7, 1.0, 1.37, 2.0, (0.8, 3.0, 1.1)]


def make_affine(voxel=(1.0, 1.2, 0.9), degrees=(0.0, 0.0, 0.0), origin=(-80.0, -110.0, 30.0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * voxel
    affine[:3, 3] = origin
    return affine


GRIDS = [Grid((20, 25, 17), make_affine()), Grid((20, 25, 17), make_affine(degrees=(12.0, -7.0, 21.0)))]


def smooth(shape, seed=0):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5).astype(np.float32)


def positions_of(grid):
    """Scanner coordinates of every voxel, `[X, Y, Z, 3]`."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_target_grid_has_the_voxel_size_asked_for_and_the_same_centre_and_directions(grid, size):
    target = target_grid(grid, size)
    np.testing.assert_allclose(target.voxel_size, np.broadcast_to(size, 3), rtol=1e-14)
    np.testing.assert_allclose(target.centre, grid.centre, atol=1e-12)
    directions = [g.affine[:3, :3] / g.voxel_size for g in (grid, target)]
    np.testing.assert_allclose(*directions, atol=1e-14)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_target_grid_covers_the_field_of_view_to_half_a_voxel_a_side(grid, size):
    target = target_grid(grid, size)
    extent, wanted = (np.array(g.shape) * g.voxel_size for g in (target, grid))
    assert (np.abs(extent - wanted) <= 0.502 * np.array(target.voxel_size)).all()


def test_voxel_sizes_stored_as_float32_give_the_same_shape():
    exact, stored = (Grid((255, 253, 255), make_affine((v, v, v))) for v in (0.7, float(np.float32(0.7))))
    assert target_grid(exact, 1.4).shape == target_grid(stored, 1.4).shape == (128, 127, 128)


def test_target_grids_there_and_back_give_the_original_grid_where_sizes_divide():
    grid = Grid((20, 24, 16), make_affine((1.0, 1.0, 1.0), (5.0, 4.0, 3.0)))
    back = target_grid(target_grid(grid, 2.0), 1.0)
    assert back.shape == grid.shape
    np.testing.assert_allclose(back.affine, grid.affine, atol=1e-12)


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), (1.0, 1.0, 0.0)])
def test_voxel_sizes_that_are_no_sizes_are_refused(size):
    with pytest.raises(ValueError, match="positive"):
        target_grid(GRIDS[0], size)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_cubic_is_the_mirrored_interpolating_spline_of_scipy(n):
    data = np.random.default_rng(n).normal(size=n)
    positions = np.linspace(-1.3, n + 0.4, 57)
    expected = ndimage.map_coordinates(data, positions[None], order=3, mode="mirror")
    np.testing.assert_allclose(interpolation_matrix(n, positions, "cubic") @ data, expected, atol=1e-6)


def test_cubic_resampling_of_a_volume_is_that_of_scipy():
    source, data = GRIDS[1], smooth(GRIDS[1].shape)
    target = target_grid(source, 0.6)
    index = (positions_of(target) - source.affine[:3, 3]) @ np.linalg.inv(source.affine[:3, :3]).T
    expected = ndimage.map_coordinates(data, np.moveaxis(index, -1, 0), order=3, mode="mirror")
    np.testing.assert_allclose(resample(data, source, target), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cubic"])
@pytest.mark.parametrize("size", [0.5, 0.9])
def test_finer_grids_reproduce_affine_functions_of_position(kind, size):
    source = GRIDS[1]
    target = target_grid(source, size)
    ramp = (positions_of(source) @ [0.3, -0.2, 0.5]).astype(np.float32)
    expected = positions_of(target) @ [0.3, -0.2, 0.5]
    inner = tuple(slice(n // 3, -n // 3) for n in target.shape)  # away from the mirrored and continued edges
    tolerance = 1e-4 if kind == "linear" else 0.02  # the mirror's kink rings, at 0.27 a voxel
    np.testing.assert_allclose(resample(ramp, source, target, kind)[inner], expected[inner], atol=tolerance)


@pytest.mark.parametrize("spacing", [1.01, 1.5, 2.0, 2.7, 4.0])
def test_linear_reproduces_affine_functions_on_coarser_grids_too(spacing):
    positions = np.arange(10, 50, spacing)
    np.testing.assert_allclose(interpolation_matrix(60, positions, "linear", spacing) @ np.arange(60.0), positions, rtol=1e-6)


@pytest.mark.parametrize("n", [15, 16])
@pytest.mark.parametrize("finer", [0.5, 0.8])
def test_kspace_interpolates_periodic_band_limited_signals_exactly(n, finer):
    def signal(x):
        return 2 + np.cos(2 * np.pi * 3 * x / n + 0.4) - np.sin(2 * np.pi * 6 * x / n)

    positions = np.arange(-0.5, n - 0.5, finer)
    matrix = interpolation_matrix(n, positions, "kspace", finer)
    np.testing.assert_allclose(matrix @ signal(np.arange(n)), signal(positions), atol=2e-6)


def test_kspace_to_twice_the_voxels_is_zero_filling_of_the_transform():
    n, data = 12, np.random.default_rng(0).normal(size=12)
    spectrum = np.fft.fftshift(np.fft.fft(data))
    spectrum[0] /= 2
    filled = np.zeros(2 * n, complex)
    filled[n // 2 : n // 2 + n] = spectrum
    filled[n // 2 + n] = spectrum[0]
    expected = 2 * np.fft.ifft(np.fft.ifftshift(filled)).real
    np.testing.assert_allclose(interpolation_matrix(n, np.arange(2 * n) / 2, "kspace", 0.5) @ data, expected, atol=1e-6)


def test_kspace_on_a_coarser_grid_keeps_only_what_that_grid_can_hold():
    n, index = 24, np.arange(24)
    matrix = interpolation_matrix(n, np.arange(0.5, n, 2.0), "kspace", 2.0)
    kept, dropped = (np.cos(2 * np.pi * k * index / n) for k in (5, 7))
    np.testing.assert_allclose(matrix @ kept, np.cos(2 * np.pi * 5 * np.arange(0.5, n, 2.0) / n), atol=1e-6)
    np.testing.assert_allclose(matrix @ dropped, 0, atol=1e-6)


@pytest.mark.parametrize("kind, left", [("linear", 0.045), ("cubic", 0.01), ("kspace", 1e-6)])
def test_coarser_grids_do_not_alias(kind, left):
    """The finest pattern the input holds comes out as (next to) nothing, not as a coarse one; sinc² at 1.5 is 0.045."""
    matrix = interpolation_matrix(96, np.arange(20.3, 76, 3.0), kind, 3.0)
    assert np.abs(matrix @ np.cos(np.pi * np.arange(96))).max() < left


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_grid_gives_the_same_data_bit_for_bit(kind):
    data = smooth(GRIDS[1].shape)
    assert (resample(data, GRIDS[1], GRIDS[1], kind) == data).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0.4, 1.0, 1.7, 5.0, 30.0])
def test_constants_are_kept(kind, size):
    data = np.full(GRIDS[1].shape, 1234.5, np.float32)
    np.testing.assert_allclose(resample(data, GRIDS[1], target_grid(GRIDS[1], size), kind), 1234.5, rtol=2e-6)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", [0.6, 0.9, 1.5, (0.5, 2.0, 1.0)])
@pytest.mark.parametrize("kind", ["linear", "cubic", "kspace"])
def test_a_landmark_keeps_its_scanner_coordinate(grid, size, kind):
    landmark = grid.centre + np.array([1.3, -2.1, 0.4])
    blob = np.exp(-((positions_of(grid) - landmark) ** 2).sum(-1) / (2 * 2.0**2)).astype(np.float32)
    target = target_grid(grid, size)
    found = resample(blob, grid, target, kind).astype(np.float64)
    centre = (positions_of(target) * found[..., None]).sum((0, 1, 2)) / found.sum()
    np.testing.assert_allclose(centre, landmark, atol=0.01)


@pytest.mark.parametrize("kind", ["cubic", "kspace"])
def test_a_smooth_volume_survives_a_finer_grid_and_back(kind):
    source, data = GRIDS[0], smooth(GRIDS[0].shape)
    target = target_grid(source, (0.5, 0.6, 0.45))
    back = resample(resample(data, source, target, kind), target, source, kind)
    assert np.abs(back - data)[2:-2, 2:-2, 2:-2].max() < 0.1 * data.std()


def test_nearest_invents_no_value():
    data = np.random.default_rng(0).integers(0, 50, GRIDS[0].shape).astype(np.float32)
    for size in (0.4, 2.5):
        assert set(np.unique(resample(data, GRIDS[0], target_grid(GRIDS[0], size), "nearest"))) <= set(np.unique(data))


def test_nearest_is_what_its_matrix_says():
    positions = np.array([-0.6, -0.2, 0.5, 1.49, 3.7, 9.0])
    expected = np.arange(5.0)[[0, 0, 1, 1, 4, 4]]
    assert (interpolation_matrix(5, positions, "nearest") @ np.arange(5.0) == expected).all()


def test_a_single_voxel_fills_whatever_it_is_asked_to():
    for kind in KINDS:
        np.testing.assert_allclose(interpolation_matrix(1, np.array([-0.3, 0.0, 2.0]), kind), 1.0)


def test_grids_whose_axes_are_not_parallel_are_refused_with_a_way_out():
    with pytest.raises(ValueError, match="resample_oblique"):
        resample(smooth(GRIDS[0].shape), GRIDS[0], GRIDS[1])


def test_data_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 3, 3\)"):
        resample(np.zeros((3, 3, 3), np.float32), GRIDS[0], GRIDS[0])


def test_oblique_resampling_reads_the_same_scanner_position():
    source = GRIDS[1]
    target = Grid((9, 9, 9), make_affine((1.0, 1.0, 1.0), (3.0, 40.0, -5.0), source.centre - 4))
    ramp = (positions_of(source) @ [0.3, -0.2, 0.5]).astype(np.float32)
    inside = (np.abs((positions_of(target) - source.affine[:3, 3]) @ np.linalg.inv(source.affine[:3, :3]).T - 10) < 5).all(-1)
    found = resample_oblique(ramp, source, target, "linear")
    np.testing.assert_allclose(found[inside], (positions_of(target) @ [0.3, -0.2, 0.5])[inside], atol=1e-4)


def test_a_straight_grid_has_right_angles_and_covers_the_sheared_one():
    sheared = make_affine((0.5, 0.5, 2.4), (10.0, 0.0, 5.0))
    sheared[:3, 2] += 0.6 * sheared[:3, 1]
    grid = Grid((30, 40, 12), sheared)
    straight = straight_grid(grid)
    directions = straight.affine[:3, :3] / straight.voxel_size
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(straight.voxel_size, grid.voxel_size, rtol=1e-12)
    index = (positions_of(grid) - straight.affine[:3, 3]) @ np.linalg.inv(straight.affine[:3, :3]).T
    assert (index > -1).all()
    assert (index < np.array(straight.shape)).all()
