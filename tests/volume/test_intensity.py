"""Laws of the intensity window."""

import numpy as np
import pytest

from jaxsr.volume.errors import VolumeError
from jaxsr.volume.intensity import Window, fit_window


def head(background, seed=0, scale=100.0, offset=0.0):
    """A ball of tissue, uniform between offset + scale and offset + 2 scale, in a box of `background`: about a quarter of the voxels."""
    rng = np.random.default_rng(seed)
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, 40)] * 3, indexing="ij"))
    ball = (x**2).sum(0) < 0.62
    return np.where(ball, offset + scale * (1 + rng.random(ball.shape)), background).astype(np.float32), ball


@pytest.mark.parametrize("background", [0.0, -1024.0, 7.0])
def test_filling_does_not_move_the_window(background):
    data, tissue = head(background)
    np.testing.assert_allclose(fit_window(data), np.percentile(data[tissue], (0.1, 99.9)), atol=2.5)


def test_filling_in_the_middle_of_the_tissue_does_not_move_the_window():
    data, tissue = head(0.0, scale=2.0, offset=-3.0)  # as after z-scoring inside a mask
    window = fit_window(data)
    np.testing.assert_allclose(window, (-1.0, 1.0), atol=0.06)
    assert abs(window.forward(np.float32(0))) < 0.05
    assert tissue.mean() < 0.5


def test_a_few_spikes_do_not_move_the_window():
    data, _ = head(0.0)
    clean = fit_window(data)
    data[20, 20, 18:20] = 1e6
    np.testing.assert_allclose(fit_window(data), clean, atol=1.0)


def test_noisy_air_maps_near_the_low_end():
    _, tissue = head(0.0)
    rng = np.random.default_rng(1)
    noise, signal = rng.rayleigh(1.0, tissue.shape), 200 * rng.random(tissue.shape)
    window = fit_window(np.where(tissue, signal, noise).astype(np.float32))
    assert -1.1 < window.forward(1.0) < -0.9


def test_a_mask_says_what_the_foreground_is():
    data, tissue = head(0.0)
    window = fit_window(data, mask=tissue, percentiles=(1, 99))
    np.testing.assert_allclose(window, np.percentile(data[tissue], (1, 99)), rtol=1e-6)


def test_the_ends_of_the_window_map_to_minus_one_and_one_and_nothing_is_clipped():
    window = Window(20.0, 60.0)
    np.testing.assert_array_equal(window.forward(np.array([20, 40, 60, 100, 0], np.float32)), [-1, 0, 1, 3, -2])


@pytest.mark.parametrize("scale, offset", [(1e-6, 0.0), (100.0, 0.0), (100.0, -1024.0), (1e4, 3e4), (1e12, 0.0)])
def test_the_inverse_is_exact_to_a_millionth_of_the_window(scale, offset):
    data, _ = head(offset, scale=scale, offset=offset)
    data[0, 0, 0] = offset + 5 * scale  # outside the window
    window = fit_window(data)
    back = window.inverse(window.forward(data))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, data, rtol=0, atol=1e-6 * (window.high - window.low))


def test_with_an_offset_so_large_that_float32_limits_it_the_inverse_is_exact_to_one_step_of_float32():
    data, _ = head(1e6, offset=1e6)
    window = fit_window(data)
    assert np.abs(window.inverse(window.forward(data)) - data).max() <= np.spacing(np.float32(1e6))


def test_the_window_of_a_shifted_and_scaled_volume_is_the_shifted_and_scaled_window():
    data, _ = head(0.0)
    np.testing.assert_allclose(fit_window(data * 4 - 512), np.array(fit_window(data)) * 4 - 512, rtol=1e-5)


def test_binary_and_label_maps_have_a_window():
    data = np.zeros((20, 20, 20), np.float32)
    data[5:12, 5:12, 5:12] = 1
    assert fit_window(data) == (0.0, 1.0)
    data[...] = 0
    data[3, 3, 3] = 1  # less than the upper percentile's share
    assert fit_window(data) == (0.0, 1.0)


@pytest.mark.parametrize("value", [0.0, -3.5, 7.0])
def test_a_constant_volume_has_no_contrast(value):
    with pytest.raises(VolumeError, match=f"no contrast.*{value:g}"):
        fit_window(np.full((8, 8, 8), value, np.float32))


def test_masks_that_do_not_fit_are_refused():
    data, tissue = head(0.0)
    with pytest.raises(VolumeError, match="empty"):
        fit_window(data, mask=np.zeros_like(tissue))
    with pytest.raises(VolumeError, match="own grid"):
        fit_window(data, mask=tissue[1:])
