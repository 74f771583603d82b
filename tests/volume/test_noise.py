"""Laws of the noise's estimate: what was added is found, in air where that is noise, in tissue where air says nothing."""

import numpy as np
import pytest

from jaxsr.volume.errors import VolumeError
from jaxsr.volume.noise import estimate_noise

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
    """The tissue's own structure is smooth here; whatever it has adds to σ, and never takes from it."""
    noisy, head = magnitude(ball()), ball() > 0
    found = estimate_noise(np.where(head, noisy, 0))
    assert found.source == "tissue"
    assert found.sigma == pytest.approx(SIGMA, rel=0.05)


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
