"""Laws of motion and ghosts in k-space."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxsr.physics.kspace import truncate
from jaxsr.physics.motion import Poses, draw_poses, ghost, move_during, rigid

SHAPE = (32, 36, 30)
SIZE = (1.0, 1.3, 0.8)
NONE = (0.0, 0.0, 0.0)


def blob(shape, size, centre, width=2.5):
    """A Gaussian `width` mm wide (σ), `centre` mm from the centre of the field of view; smooth, so band-limited."""
    axes = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * v for n, v in zip(shape, size, strict=True)], indexing="ij")
    return jnp.asarray(np.exp(-sum((x - c) ** 2 for x, c in zip(axes, centre, strict=True)) / (2 * width**2)), jnp.float32)


def centre_of(image, size):
    """mm from the centre of the field of view."""
    return (np.array(ndimage.center_of_mass(np.asarray(image))) - (np.array(image.shape) - 1) / 2) * size


def smooth_noise(shape, seed=0):
    """No Nyquist frequency, as truncation leaves it."""
    return truncate(jax.random.normal(jax.random.key(seed), shape), [n - 1 - n % 2 for n in shape])


# ------------------------------------------------------------------------------------------------ rigid


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_turns_by_the_right_hand_about_each_axis_also_where_voxels_are_not_cubes(axis):
    angles, start = np.zeros(3), np.array([3.0, -2.0, 1.5])
    angles[axis] = 0.5
    moved = rigid(blob(SHAPE, SIZE, start, 1.8), angles, NONE, SIZE)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    expected = start.copy()
    expected[a], expected[b] = np.cos(0.5) * start[a] - np.sin(0.5) * start[b], np.sin(0.5) * start[a] + np.cos(0.5) * start[b]
    np.testing.assert_allclose(moved, blob(SHAPE, SIZE, expected, 1.8), atol=2e-3)


def test_a_shift_is_in_millimetres_along_each_axis():
    shift = np.array([1.7, -2.2, 0.9])
    np.testing.assert_allclose(rigid(blob(SHAPE, SIZE, NONE), NONE, shift, SIZE), blob(SHAPE, SIZE, shift), atol=1e-4)


def test_a_slice_turns_as_the_volume_that_it_is_of():
    x, turned = blob(SHAPE[:2], SIZE[:2], (4.0, -3.0)), blob(SHAPE, SIZE, (4.0, -3.0, 0.0))
    middle = rigid(turned, (0, 0, 0.4), (1.0, 2.0, 0.0), SIZE)[:, :, 15] / turned[:, :, 15].max()
    flat = rigid(x, (0.4,), (1.0, 2.0), SIZE[:2]) / x.max()
    np.testing.assert_allclose(middle, flat, atol=1e-4)


def test_no_motion_is_the_identity_and_motion_there_and_back_too():
    """Shears undo each other exactly but for the Nyquist frequencies, which odd sides do not have."""
    x = jax.random.normal(jax.random.key(0), (33, 35, 31))
    np.testing.assert_allclose(rigid(x, NONE, NONE, SIZE), x, atol=1e-5)
    there = rigid(x, (0.1, 0, 0), NONE, SIZE)
    assert np.abs(there - x).max() > 0.1
    np.testing.assert_allclose(rigid(there, (-0.1, 0, 0), NONE, SIZE), x, atol=1e-5)


def test_turning_blurs_nothing():
    """Shears by phases are unitary: no energy is lost, as by interpolation it would be."""
    x = jax.random.normal(jax.random.key(0), (33, 35, 31))
    turned = rigid(x, (0.05, -0.1, 0.2), (1.0, 2.0, 3.0), SIZE)
    assert float((turned**2).sum() / (x**2).sum()) == pytest.approx(1, abs=1e-4)


def test_turning_is_that_of_scipy_splines():
    """scipy.ndimage.affine_transform of order 5 reads the output at R⁻¹(r − c) + c, in index space of cubic voxels."""
    x = blob(SHAPE, (1.0,) * 3, (4.0, -3.0, 2.0))
    a, c = 0.3, (np.array(SHAPE) - 1) / 2
    inverse = np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])
    expected = ndimage.affine_transform(np.asarray(x), inverse, c - inverse @ c, order=5)
    np.testing.assert_allclose(rigid(x, (0, 0, a), NONE, (1.0,) * 3), expected, atol=2e-3)


# ------------------------------------------------------------------------------------------------ motion while lines are acquired


def two_poses(when):
    return Poses(jnp.array([when]), jnp.array([NONE, (0.2, 0.0, 0.1)]), jnp.array([NONE, (2.0, -1.0, 0.5)]))


def same(x):
    return x


def test_a_head_that_does_not_move_is_seen_as_it_is():
    x = smooth_noise(SHAPE)
    still = Poses(jnp.array([0.3, 0.8]), jnp.zeros((3, 3)), jnp.zeros((3, 3)))
    np.testing.assert_allclose(move_during(same, x, still, SIZE, 1), x, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_lines_are_those_of_the_head_as_it_lay_when_they_were_acquired(axis):
    """From the lowest k to the highest, evenly in time."""
    x, poses = smooth_noise(SHAPE), two_poses(0.7)
    n = SHAPE[axis]
    lines, before, after = (
        np.moveaxis(np.fft.fft(v, axis=axis), axis, 0)
        for v in (move_during(same, x, poses, SIZE, axis), x, rigid(x, poses.angles[1], poses.shifts[1], SIZE))
    )
    early = np.fft.fftfreq(n) + 0.5 < 0.7
    assert early.sum() == np.ceil(0.7 * n)
    np.testing.assert_allclose(lines[early], before[early], atol=1e-3)
    np.testing.assert_allclose(lines[~early], after[~early], atol=1e-3)


def test_a_shift_of_late_lines_is_a_phase_of_theirs():
    """The Fourier shift theorem: exp(−2πi k d / N) for d voxels."""
    x = smooth_noise((24, 20))[:, :, None]
    poses = Poses(jnp.array([0.6]), jnp.zeros((2, 3)), jnp.array([NONE, (0.0, 3.0, 0.0)]))
    seen = np.fft.fft(move_during(same, x, poses, (1.0,) * 3, 1), axis=1)
    k = np.fft.fftfreq(20)
    phase = np.where(k + 0.5 >= 0.6, np.exp(-2j * np.pi * k * 3), 1)
    np.testing.assert_allclose(seen, np.fft.fft(x, axis=1) * phase[None, :, None], atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_image_shows_the_head_where_it_lay_when_its_mean_was_acquired(seed):
    """Drawn poses are relative to that of k = 0, so that the mean and the place are those of the truth."""
    poses = draw_poses(jax.random.key(seed), 3, 2.0, 2.0)
    assert (jnp.diff(poses.times) >= 0).all()
    centre = int((poses.times <= 0.5).sum())
    assert (poses.angles[centre] == 0).all()
    assert (poses.shifts[centre] == 0).all()
    others = np.delete(np.arange(4), centre)
    assert (poses.shifts[others] != 0).all()
    x = blob(SHAPE, SIZE, (3.0, 2.0, 1.0), 4.0)
    seen = move_during(same, x, poses, SIZE, 1)
    np.testing.assert_allclose(seen.mean(), x.mean(), rtol=1e-4)


def test_angles_and_shifts_have_the_stated_deviation():
    poses = jax.vmap(lambda k: draw_poses(k, 1, 3.0, 0.7))(jax.random.split(jax.random.key(0), 2000))
    moved = poses.angles != 0
    assert float(jnp.rad2deg(poses.angles[moved]).std()) == pytest.approx(3.0, rel=0.05)
    assert float(poses.shifts[poses.shifts != 0].std()) == pytest.approx(0.7, rel=0.05)


def test_a_batch_of_moving_heads_is_a_vmap():
    x = jnp.stack([smooth_noise((10, 12, 8), s) for s in range(2)])
    keys = jax.random.split(jax.random.key(0), 2)
    see = jax.jit(lambda k, v: move_during(same, v, draw_poses(k, 1, 3.0, 2.0), SIZE, 1))
    np.testing.assert_allclose(jax.jit(jax.vmap(see))(keys, x)[1], see(keys[1], x[1]), atol=1e-5)


# ------------------------------------------------------------------------------------------------ ghosts


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("shape", [(7, 24), (5, 24, 6)])
def test_every_nth_line_makes_ghosts_at_nths_of_the_field_of_view(every, shape):
    """The comb sum: n − 1 ghosts of the stated intensity, and the image itself as it was."""
    x = smooth_noise(shape)
    expected = x + 0.2 * sum(jnp.roll(x, j * shape[1] // every, 1) for j in range(1, every))
    np.testing.assert_allclose(ghost(x, every, 0.2, 1), expected, atol=1e-5)


def test_a_ghost_may_have_a_phase_of_its_own():
    x = smooth_noise((24, 8))
    np.testing.assert_allclose(ghost(x, 2, 0.3j, 0), x + 0.3j * jnp.roll(x, 12, 0), atol=1e-5)


def test_no_intensity_is_no_ghost_and_every_line_is_refused():
    x = smooth_noise((24, 8))
    np.testing.assert_allclose(ghost(x, 2, 0.0, 0), x, atol=1e-6)
    with pytest.raises(ValueError, match="got every 1"):
        ghost(x, 1, 0.1, 0)
