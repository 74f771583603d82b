"""Laws of the baselines: they keep what interpolation must keep, where it lay."""

import numpy as np
import pytest

from jaxsr.evaluate.interpolation import INTERPOLATIONS, interpolate
from jaxsr.volume.geometry import target_grid
from jaxsr.volume.io import Volume


def ball(voxel_size, side=32.0):
    """A smooth ball off the centre of a field of view of `side` mm, sampled where `voxel_size` says."""
    n = round(side / voxel_size)
    mm = (np.arange(n) - (n - 1) / 2) * voxel_size
    x, y, z = np.meshgrid(mm, mm, mm, indexing="ij")
    affine = np.diag([voxel_size] * 3 + [1.0])
    affine[:3, 3] = mm[0]
    return Volume(np.exp(-((x - 3) ** 2 + (y + 2) ** 2 + z**2) / 50).astype(np.float32), affine)


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_a_ball_stays_where_it_was(name):
    high = interpolate(ball(2.0), ball(1.0).grid, name)
    index = np.stack(np.meshgrid(*map(np.arange, high.data.shape), indexing="ij"))
    centre = (high.data * index).sum((1, 2, 3)) / high.data.sum()
    np.testing.assert_allclose(high.affine[:3, :3] @ centre + high.affine[:3, 3], [3, -2, 0], atol=0.1)


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_a_volume_on_its_own_grid_is_itself(name):
    low = ball(2.0)
    np.testing.assert_allclose(interpolate(low, low.grid, name).data, low.data, atol=1e-6)


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_a_constant_stays_constant(name):
    low = ball(2.0)
    constant = Volume(np.full_like(low.data, 7), low.affine)
    np.testing.assert_allclose(interpolate(constant, target_grid(low.grid, 1.3), name).data, 7, rtol=1e-5)


def test_smoother_interpolations_come_closer_to_a_smooth_object():
    truth = ball(1.0)
    error = {name: np.abs(interpolate(ball(2.0), truth.grid, name).data - truth.data).mean() for name in INTERPOLATIONS}
    assert error["nearest"] > error["trilinear"] > error["tricubic"]


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'lanczos'.*zero-filled"):
        interpolate(ball(2.0), ball(1.0).grid, "lanczos")
