"""Laws of the student's path of resolutions [teacher paper §II-B, Eq. 7 and §IV-D]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage
from scipy.special import ive

from jaxsr.methods.stages import Stages, StagesConfig
from jaxsr.physics.blur import blur_slices, discrete_gaussian

PAPER = StagesConfig(blur="paper")
MATCHED = StagesConfig(blur="matched")


def images(n=3, side=40, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, side, side, 1))


def test_the_published_split_of_the_stages_follows_from_voxel_sizes():
    """§IV-D: 1.5T (2.0 mm) → 3T (1.5 mm) is stages 1–4 of 20, 3T → 7T (0.7 mm) is 5–20."""
    assert MATCHED.between(2.0, 1.5) == range(1, 5)
    assert MATCHED.between(1.5, 0.7) == range(5, 21)
    assert MATCHED.between(2.0, 0.7) == MATCHED.between(None, None) == range(1, 21)


@pytest.mark.parametrize("count", [2, 5, 10, 20, 50])
def test_stages_rise_with_the_spatial_frequency_and_end_where_the_path_ends(count):
    config = StagesConfig(count=count)
    stages = [config.stage_of(mm) for mm in np.linspace(4.0, 0.3, 60)]
    assert stages == sorted(stages)
    assert (stages[0], stages[-1]) == (0, count)
    assert [config.stage_of(mm) for mm in config.sizes()] == list(range(count + 1))  # v_n belongs to stage n
    assert not config.between(0.5, 0.7)


def test_the_blur_of_the_paper_is_k_r_n_pixels_and_ends_at_nothing():
    """Eq. 7, r_n = (N − n)/(N − 1)."""
    np.testing.assert_allclose(PAPER.sigmas(), 2.0 * (20 - np.arange(1, 21)) / 19, atol=1e-12)
    np.testing.assert_allclose(PAPER.ratios(), (20 - np.arange(1, 21)) / 19, atol=1e-7)


def test_the_matched_blur_has_the_full_width_of_the_stage_s_voxels():
    """spec: σ_n = √(v_n² − v_HR²)/2.355 mm; n = 4 of 20 from 2.0 to 0.7 mm: 0.78 pixel."""
    sigmas = MATCHED.sigmas()
    assert sigmas[3] == pytest.approx(0.78, abs=5e-3)
    assert sigmas[-1] == 0
    assert (np.diff(sigmas) < 0).all()
    width = np.sqrt((sigmas * 0.7 * 2.35482) ** 2 + 0.7**2)
    np.testing.assert_allclose(1 / width, 1 / 2 + np.arange(1, 21) / 20 * (1 / 0.7 - 1 / 2), rtol=1e-6)


@pytest.mark.parametrize("config", [PAPER, MATCHED], ids=["paper", "matched"])
def test_the_last_stage_is_the_teacher_s_output_to_the_bit_and_a_constant_is_no_stage_s_to_change(config):
    stages = Stages(config)
    np.testing.assert_array_equal(stages.target(images(), jnp.full(3, 20)), images())
    np.testing.assert_allclose(stages.target(jnp.full((20, 24, 24, 1), 0.3), jnp.arange(1, 21)), 0.3, rtol=1e-6)


def test_slices_of_one_batch_are_each_blurred_as_their_own_stage_says():
    stage = jnp.array([1, 7, 20])
    together = Stages(PAPER).target(images(), stage)
    for i in range(3):
        np.testing.assert_allclose(together[i : i + 1], Stages(PAPER).target(images()[i : i + 1], stage[i : i + 1]), atol=1e-6)


def test_the_blur_is_scipy_s_correlation_with_the_discrete_gaussian():
    sigma, radius = 1.3, 7
    kernel = ive(np.abs(np.arange(-radius, radius + 1)), sigma**2)
    expected = np.asarray(images()[0, ..., 0], np.float64)
    for axis in (0, 1):
        expected = ndimage.correlate1d(expected, kernel / kernel.sum(), axis, mode="mirror")
    made = blur_slices(images()[:1], jnp.asarray(discrete_gaussian(np.array([sigma]), radius)))
    np.testing.assert_allclose(made[0, ..., 0], expected, atol=2e-6)


@pytest.mark.parametrize("one, two", [(0.2, 0.3), (0.6, 0.8), (1.2, 1.6)])
def test_blurring_twice_is_blurring_once_by_the_sum_of_the_squares(one, two):
    """The semigroup of Eq. 7's Gaussians, below a pixel too, and at the edges."""
    kernels = jnp.asarray(discrete_gaussian(np.array([one, two, np.hypot(one, two)]), 14))
    twice = blur_slices(blur_slices(images(1), kernels[:1]), kernels[1:2])
    np.testing.assert_allclose(twice, blur_slices(images(1), kernels[2:]), atol=1e-5)


def test_the_variance_of_a_kernel_is_what_was_asked_for_however_narrow():
    sigmas = np.array([0.1, 0.3, 0.78, 2.0])
    variance = (discrete_gaussian(sigmas, 12).astype(np.float64) * np.arange(-12, 13) ** 2).sum(1)
    np.testing.assert_allclose(variance, sigmas**2, rtol=1e-5)


def test_the_condition_is_the_target_of_the_stage_before_and_the_scan_at_the_first():
    stages, low = Stages(MATCHED), images(seed=1)
    condition = stages.condition(images(), low, jnp.array([1, 2, 20]))
    np.testing.assert_array_equal(condition[0], low[0])
    before = stages.target(images(), jnp.array([1, 1, 19]))
    np.testing.assert_array_equal(condition[1:], before[1:])


def test_a_path_that_gets_no_finer_is_refused():
    with pytest.raises(ValidationError, match="low_mm must be above high_mm"):
        StagesConfig(low_mm=0.7, high_mm=0.7)
