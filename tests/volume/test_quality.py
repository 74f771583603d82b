"""Laws of a scan's quality: closed forms of waves, with and without noise, and what does not change it."""

import numpy as np
import pytest
from scipy import ndimage

from jaxsr.volume.intensity import Window, fit_window
from jaxsr.volume.noise import estimate_noise
from jaxsr.volume.quality import NOISE, SHARPNESS, TYPICAL, quality_of

SIDE = 64


def waves(omega, sigma=0.0, seed=0):
    """A ball of waves of `omega` a voxel along each axis, as a magnitude with noise of `sigma`."""
    at = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"))
    inside = ((at - SIDE / 2) ** 2).sum(0) < (0.42 * SIDE) ** 2
    signal = np.where(inside, 500 + sum(50 * np.sin(w * along) for w, along in zip(omega, at, strict=True)), 0.0)
    noise = sigma * np.random.default_rng(seed).standard_normal((2, *signal.shape))
    return np.hypot(signal + noise[0], noise[1]).astype(np.float32)


@pytest.mark.parametrize("sigma", [0.0, 10.0])
def test_a_wave_has_the_sharpness_of_its_frequency(sigma):
    """2 tan(ω / 2), whatever white noise is added: the closed form at the head of jaxsr.volume.quality."""
    omega = (0.7, 1.1, 1.6)
    found = quality_of(waves(omega, sigma), Window(0, 1000))
    assert found.sharpness == pytest.approx(2 * np.tan(np.array(omega) / 2), rel=0.03)


def test_noise_neither_sharpens_nor_smooths():
    clean, noisy = (quality_of(waves((0.7, 1.1, 1.6), sigma), Window(0, 600)) for sigma in (0.0, 15.0))
    assert noisy.sharpness == pytest.approx(clean.sharpness, rel=0.05)
    assert noisy.noise == pytest.approx(15 / 300, rel=0.03)  # of a window 600 wide, which is 2 in its own units
    assert clean.noise == NOISE[0]


def test_no_more_noise_is_believed_than_differences_of_neighbours_have():
    """Where the air is louder than the head: what a head that was smoothed alone looks like."""
    loud = np.random.default_rng(1).standard_normal((2, SIDE, SIDE, SIDE)) * 40
    clean = waves((0.7, 1.1, 1.6))
    data = np.where(clean > 0, clean, np.hypot(*loud)).astype(np.float32)
    window = Window(0, 600)
    assert estimate_noise(data).sigma == pytest.approx(40, rel=0.02)
    found = quality_of(data, window)
    assert found.noise <= 1.01 * np.sqrt((50 * 2 * (1 - np.cos(0.7))) ** 2 / 2 / 6) / 300
    assert found.noise < 40 / 300


def test_it_is_of_the_image_and_not_of_its_units():
    data = waves((0.7, 1.1, 1.6), 15.0)
    one, other = (np.hstack(quality_of(of, fit_window(of))) for of in (data, 7 * data))
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_it_turns_with_the_volume():
    data = waves((0.7, 1.1, 1.6), 15.0)
    window = fit_window(data)
    turned = quality_of(data.transpose(2, 0, 1), window)
    assert turned.sharpness == pytest.approx([quality_of(data, window).sharpness[axis] for axis in (2, 0, 1)], rel=1e-6)


@pytest.mark.parametrize("shape", [(SIDE, SIDE, 1), (SIDE, SIDE, 4), (5, SIDE, SIDE)])
def test_of_a_slab_it_is_that_of_the_head_along_its_sides(shape):
    """Through it a wave is not seen whole, and of one voxel nothing is known."""
    whole, window = waves((0.7, 1.1, 1.6), 10.0), Window(0, 600)
    slab = whole[tuple(slice((SIDE - n) // 2, (SIDE + n) // 2) for n in shape)]
    found, expected = quality_of(slab, window), quality_of(whole, window)
    for axis, n in enumerate(shape):
        if n == SIDE:
            assert found.sharpness[axis] == pytest.approx(expected.sharpness[axis], rel=0.1)
        else:
            assert n > 1 or found.sharpness[axis] == TYPICAL[0]


def test_no_side_is_too_long():
    whole, window = waves((0.7, 1.1, 1.6), 10.0), Window(0, 600)
    air = np.hypot(*np.random.default_rng(1).normal(0, 10, (2, 300, SIDE, SIDE))).astype(np.float32)
    air[150 : 150 + SIDE] = whole
    assert np.hstack(quality_of(air, window)) == pytest.approx(np.hstack(quality_of(whole, window)), rel=0.03)


@pytest.mark.parametrize("data", [np.zeros((9, 9, 9)), np.eye(9)[..., None] * np.ones(9), np.full((3, 9, 2), 7.0), -np.ones((4, 4, 4))])
def test_of_what_is_no_head_it_is_a_number_all_the_same(data):
    sharpness, noise, air = quality_of(data.astype(np.float32), Window(0, 1))
    assert all(SHARPNESS[0] <= value <= SHARPNESS[1] for value in sharpness)
    assert NOISE[0] <= noise <= NOISE[1]
    assert not air


def test_nothing_is_told_beyond_what_networks_were_told_in_training():
    still = ndimage.gaussian_filter(waves((0.2, 0.2, 0.2)), 2.0)
    assert quality_of(still, Window(0, 600)).sharpness == (SHARPNESS[0],) * 3
    assert quality_of(waves((3.0, 3.0, 3.0)), Window(0, 600)).sharpness == (SHARPNESS[1],) * 3
    assert quality_of(waves((0.7, 1.1, 1.6), 100.0), Window(0, 600)).noise == NOISE[1]


def test_where_air_was_cleared_noise_is_found_in_tissue_and_is_about_the_same():
    noisy = waves((0.7, 1.1, 1.6), 15.0)
    cleared = np.where(waves((0.7, 1.1, 1.6)) > 0, noisy, 0)
    found, other = (quality_of(data, Window(0, 600)) for data in (noisy, cleared))
    assert found.air
    assert not other.air
    assert found.noise < other.noise < 2 * found.noise  # structure counts in it
