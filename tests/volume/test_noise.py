"""Laws of the noise's estimate: what was added is found, in air where that is noise, in tissue where air says nothing."""

import numpy as np
import pytest
from scipy import ndimage

from jaxsr.volume.errors import VolumeError
from jaxsr.volume.intensity import filling
from jaxsr.volume.noise import FEWEST, LEAST_AIR, air_is_noise, cleared, estimate_noise

SIGMA = 13.0


def ball(side=60):
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, side)] * 3, indexing="ij"))
    return np.where((points**2).sum(0) < 0.5, 400 + 100 * np.sin(5 * points[0]), 0.0)


def magnitude(image, coils=1, sigma=SIGMA):
    """The root of the sum of squares of `coils` equal coils with complex noise."""
    noise = sigma * np.random.default_rng(0).normal(size=(2, coils, *image.shape))
    return np.sqrt(((image / np.sqrt(coils) + noise[0]) ** 2 + noise[1] ** 2).sum(0)).astype(np.float32)


@pytest.mark.parametrize("coils", [1, 8])
def test_noise_is_found_in_air(coils):
    found = estimate_noise(magnitude(ball(), coils), coils=coils)
    assert found.source == "air"
    assert found.sigma == pytest.approx(SIGMA, rel=0.02)


def test_noise_is_found_in_tissue_where_the_air_was_cleared():
    """The tissue's own structure is smooth here; whatever it has adds to σ. A median of 1000 has an error of 4 %."""
    noisy, head = magnitude(ball()), ball() > 0
    found = estimate_noise(np.where(head, noisy, 0))
    assert found.source == "tissue"
    assert found.sigma == pytest.approx(SIGMA, rel=0.1)


def test_what_is_left_of_the_air_about_a_head_is_not_taken_for_noise():
    """A shell of skin and ringing that happens to be distributed as noise is, of thrice the noise in the head."""
    head = ball(80) > 0
    shell = ndimage.binary_dilation(head, iterations=6) & ~ndimage.binary_dilation(head, iterations=4)
    shell &= np.random.default_rng(0).random(head.shape) < 0.9 * LEAST_AIR * head.size / shell.sum()
    assert FEWEST < shell.sum() < LEAST_AIR * head.size
    far = magnitude(np.zeros(head.shape), sigma=3 * SIGMA)
    found = estimate_noise(np.where(head, magnitude(ball(80)), np.where(shell, far, 0)))
    assert found.source == "tissue"
    assert found.sigma == pytest.approx(SIGMA, rel=0.15)  # a median of 1000


@pytest.mark.parametrize("steps", [1.5, 2.75, 3.12, 5.26])
def test_noise_of_few_integer_steps_is_found_in_air_all_the_same(steps):
    """Of whole numbers quantiles are whole, and disagree; the most common value of the air is no filling."""
    scan, head = np.rint(magnitude(ball(), sigma=steps)), ball() > 0
    found = estimate_noise(scan, head=head)
    assert found.source == "air"
    assert found.sigma == pytest.approx(np.hypot(steps, 12**-0.5), rel=0.05)  # rounding is noise too
    assert estimate_noise(0.1 * scan, head=head).sigma == pytest.approx(0.1 * found.sigma, rel=0.01)


def test_the_common_value_of_integer_air_is_not_cleared_and_a_filling_is():
    noisy = np.rint(magnitude(ball(), sigma=3))
    assert filling(noisy) is not None
    assert not cleared(noisy).any()
    for value in (0.0, -1.0, 2.0):
        np.testing.assert_array_equal(cleared(np.where(ball() > 0, noisy, value)) & (ball() == 0), ball() == 0)


def test_folds_of_tissue_add_little_to_its_noise():
    """Half of the head is folded: its coefficients are left out for what varies about them."""
    z = np.arange(60)[None, None, :]
    folds = 150 * np.where(z < 30, np.prod(np.meshgrid(*[np.sin(np.arange(60.0))] * 3, indexing="ij"), axis=0), 0)
    noisy = magnitude(ball() + folds * (ball() > 0))
    found = estimate_noise(np.where(ball() > 0, noisy, 0))
    assert found.source == "tissue"
    assert found.sigma == pytest.approx(SIGMA, rel=0.12)


def test_air_is_noise_where_its_median_is_that_of_sigma():
    noisy, head = magnitude(ball()), ball() > 0
    assert air_is_noise(noisy, SIGMA, head=head)
    assert not air_is_noise(noisy, 3 * SIGMA, head=head)
    assert not air_is_noise(np.where(head, noisy, 1e-3 * noisy), SIGMA, head=head)
    assert air_is_noise(np.where(head, noisy, 0), SIGMA, head=head)  # nothing there says otherwise


def test_air_with_ghosts_is_not_taken_for_noise():
    noisy = magnitude(ball())
    found = estimate_noise(noisy + 0.15 * np.roll(ball(), 30, 0).astype(np.float32))
    assert found.source == "tissue"
    assert found.sigma == pytest.approx(SIGMA, rel=0.05)


def test_a_volume_in_other_units_has_its_noise_in_those():
    noisy = magnitude(ball())
    one, other = (estimate_noise(k * noisy).sigma for k in (1.0, 1e-3))
    assert other == pytest.approx(1e-3 * one, rel=1e-4)


def test_where_there_is_no_noise_that_is_said():
    with pytest.raises(VolumeError, match="no noise is to be found"):
        estimate_noise((ball() > 0).astype(np.float32))
