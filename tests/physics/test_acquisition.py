"""Laws of simulated acquisitions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.physics.acquisition import ACQUISITIONS, Acquisition, acquire, acquired_shape, foreground_mean, named_acquisition
from jaxsr.physics.kspace import fourier_resample

CLEAN = Acquisition(voxel_size=(2.0, 2.0, 2.0), snr=(1e9, 1e9), bias=(0.0, 0.0))
SHAPE = (20, 24, 18)


@functools.cache
def ball(shape=SHAPE):
    """A bright ball in air, off the centre."""
    x, y, z = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) / n for n in shape], indexing="ij")
    return jnp.asarray(((x - 0.05) ** 2 + y**2 + (z + 0.1) ** 2 < 0.09).astype(np.float32))


def centre_of_mass(x):
    """In units of the field of view, from its centre."""
    x = np.asarray(x, np.float64)
    return [(x.sum(tuple(a for a in range(3) if a != axis)) @ ((np.arange(n) + 0.5) / n - 0.5)) / x.sum() for axis, n in enumerate(x.shape)]


@pytest.mark.parametrize("name, size", [("1.5T", 2.0), ("3T", 1.5)])
def test_the_named_acquisitions_have_the_papers_voxel_sizes(name, size):
    assert named_acquisition(name).voxel_size == (size, size, size)
    assert ACQUISITIONS[name].slice_axis is None


def test_an_unknown_acquisition_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'7T'; known: 1\.5T, 3T"):
        named_acquisition("7T")


@pytest.mark.parametrize(
    "voxel_size, shape", [((1, 1, 1), (10, 12, 9)), ((0.7, 0.7, 0.7), (7, 8, 6)), ((2, 2, 2), SHAPE), ((1, 4, 1), (10, 24, 9))]
)
def test_the_acquired_grid_covers_the_field_of_view_and_is_never_finer_than_the_truth(voxel_size, shape):
    assert acquired_shape(SHAPE, voxel_size, CLEAN) == shape
    assert acquire(jax.random.key(0), ball(), voxel_size, CLEAN).shape == shape


@pytest.mark.parametrize("slice_axis", [None, 2])
def test_the_field_of_view_stays_where_it_is(slice_axis):
    acquired = acquire(jax.random.key(0), ball(), (1.0, 1.0, 1.0), dataclasses.replace(CLEAN, slice_axis=slice_axis))
    # Magnitudes turn the ringing below zero up, which moves the centre a little.
    np.testing.assert_allclose(centre_of_mass(acquired), centre_of_mass(ball()), atol=0.01)


def test_without_noise_and_bias_it_is_the_magnitude_of_truncated_k_space():
    acquired = acquire(jax.random.key(0), ball(), (1.0, 1.0, 1.0), CLEAN)
    np.testing.assert_allclose(acquired, jnp.abs(fourier_resample(ball(), acquired.shape)), atol=1e-5)


@pytest.mark.parametrize("thickness", [2, 3])
def test_slices_of_a_rectangular_profile_without_gaps_are_block_averages(thickness):
    """Every depth belongs to one slice, so slices of k voxels are means of k voxels, odd k or even."""
    acquisition = dataclasses.replace(CLEAN, voxel_size=(1.0, 1.0, float(thickness)), slice_axis=2, profile="rectangular")
    acquired = acquire(jax.random.key(0), ball(), (1.0, 1.0, 1.0), acquisition)
    blocks = ball().reshape(*SHAPE[:2], SHAPE[2] // thickness, thickness).mean(-1)
    np.testing.assert_allclose(acquired, blocks, atol=1e-5)


def test_the_same_key_gives_the_same_bits_and_another_another():
    first, again, other = (acquire(jax.random.key(k), ball(), (1.0, 1.0, 1.0), named_acquisition("1.5T")) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.99


@pytest.mark.parametrize("snr", [10.0, 40.0])
def test_the_noise_is_the_foregrounds_mean_over_the_stated_signal_to_noise_ratio(snr):
    """In air, E[y²] = 2σ² with σ = mean foreground / SNR."""
    volume = jnp.zeros((40, 40, 40)).at[:20].set(0.8)
    acquisition = dataclasses.replace(CLEAN, voxel_size=(1.0, 1.0, 1.0), snr=(snr, snr))
    air = acquire(jax.random.key(5), volume, (1.0, 1.0, 1.0), acquisition)[20:]
    assert float(jnp.sqrt((air**2).mean() / 2)) == pytest.approx(float(foreground_mean(volume)) / snr, rel=0.01)
    assert float(foreground_mean(volume)) == pytest.approx(0.8)


def test_ranges_are_drawn_from_within():
    """With the bias the only unknown, its strength is between the stated ends and differs from key to key."""
    acquisition = dataclasses.replace(CLEAN, voxel_size=(1.0, 1.0, 1.0), bias=(0.1, 0.2))
    strengths = [float(jnp.log(acquire(jax.random.key(k), jnp.ones((8, 8, 8)), (1.0,) * 3, acquisition)).std()) for k in range(8)]
    assert all(0.099 <= s <= 0.201 for s in strengths)
    assert np.std(strengths) > 0.01


def test_a_degradation_is_equivariant_to_units():
    """Scanner units are arbitrary: ten times the signal is ten times the image, noise and all."""
    one, ten = (acquire(jax.random.key(1), scale * ball(), (1.0, 1.0, 1.0), named_acquisition("3T")) for scale in (1, 10))
    np.testing.assert_allclose(ten, 10 * one, rtol=1e-4, atol=1e-5)
