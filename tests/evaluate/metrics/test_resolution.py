"""Fourier shell correlation: known band limits, known signal-to-noise ratios, anisotropic voxels, masks."""

import numpy as np
import pytest

from jaxsr.evaluate.metrics.resolution import FADE, axis_resolutions, coarsest_resolution, effective_resolution, fourier_shell_correlation


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def frequencies(shape, size):
    """Cycles per mm."""
    axes = np.meshgrid(*(np.fft.fftfreq(n, d) for n, d in zip(shape, size, strict=True)), indexing="ij")
    return np.sqrt(sum(f**2 for f in axes))


def band_limited(y, size, limit):
    return np.fft.ifftn(np.fft.fftn(y) * (frequencies(y.shape, size) <= limit)).real


@pytest.mark.parametrize(
    "shape, size, limit, threshold",
    [
        ((40, 40, 40), (1.0, 1.0, 1.0), 0.25, "1/7"),
        ((40, 40, 40), (0.7, 0.7, 0.7), 0.4, "1/2"),
        ((40, 40, 40), (0.7, 0.7, 0.7), 0.3, "half-bit"),
        ((48, 40, 25), (1.0, 1.0, 2.0), 0.2, "1/7"),  # below every axis' highest frequency
        ((64, 56, 16), (0.8, 0.9, 4.0), 0.3, "1/2"),  # above that of the slices
    ],
)
def test_the_resolution_is_the_band_limit_within_a_shell(shape, size, limit, threshold):
    y = noise(shape)
    found = fourier_shell_correlation(band_limited(y, size, limit), y, voxel_size=size, threshold=threshold)
    step = 1 / min(n * d for n, d in zip(shape, size, strict=True))
    assert abs(1 / found.resolution - limit) <= step
    within = np.asarray(found.frequency) < limit - step / 2
    np.testing.assert_allclose(np.asarray(found.correlation)[within], 1, atol=1e-4)


def test_rings_of_slices_see_the_band_limit_too():
    y = noise((2, 64, 48))
    x = np.stack([band_limited(image, (1.0, 1.5), limit) for image, limit in zip(y, (0.1, 0.2), strict=True)])
    found = effective_resolution(x[..., None], y[..., None], voxel_size=(1.0, 1.5))
    np.testing.assert_allclose(1 / np.asarray(found), [0.1, 0.2], atol=1 / 64)


def test_the_curve_is_that_of_the_definition():
    """Sums over shells of numpy's transform, every sample counted; odd and even sides, and voxels of three sizes."""
    shape, size = (18, 21, 24), (1.5, 1.0, 0.8)
    x, y = noise(shape), noise(shape, 1) + 0.5 * noise(shape)
    a, b = np.fft.fftn(x - x.mean()), np.fft.fftn(y - y.mean())
    step = 1 / min(n * d for n, d in zip(shape, size, strict=True))
    shell = np.round(frequencies(shape, size) / step).astype(int).ravel()
    cross, power_a, power_b = (np.bincount(shell, v.ravel()) for v in ((a * b.conj()).real, abs(a) ** 2, abs(b) ** 2))
    found = fourier_shell_correlation(x, y, voxel_size=size)
    chosen = slice(1, len(found.frequency) + 1)
    np.testing.assert_allclose(found.correlation, (cross / np.sqrt(power_a * power_b))[chosen], atol=1e-4)
    np.testing.assert_array_equal(found.samples, np.bincount(shell)[chosen])
    np.testing.assert_allclose(found.frequency[-1], 1 / (2 * 0.8), atol=step)


def test_white_noise_correlates_by_its_share():
    """x = s + m, y = s + n of one variance: FSC = 1/2 at all frequencies, 1/√2 against s itself."""
    s, m, n = (noise((40, 40, 40), seed) for seed in range(3))
    for x, y, expected in ((s + m, s + n, 0.5), (s + m, s, np.sqrt(0.5))):
        found = fourier_shell_correlation(x, y, voxel_size=1.0)
        enough = np.asarray(found.samples) > 1000
        np.testing.assert_allclose(np.asarray(found.correlation)[enough], expected, atol=0.08)


def test_neither_factor_nor_offset_nor_order_matters():
    x, y = noise((16, 18, 20)), noise((16, 18, 20)) + noise((16, 18, 20), 1)
    expected = fourier_shell_correlation(x, y, voxel_size=1.0).correlation
    np.testing.assert_allclose(fourier_shell_correlation(y, 3 * x + 7, voxel_size=1.0).correlation, expected, atol=1e-4)


def test_millimetres_scale_the_axis_and_nothing_else():
    x, y = noise((24, 24, 24)), noise((24, 24, 24)) + 2 * noise((24, 24, 24), 1)
    one, two = (fourier_shell_correlation(x, y, voxel_size=mm) for mm in (1.0, 2.0))
    np.testing.assert_allclose(two.frequency, one.frequency / 2, rtol=1e-6)
    np.testing.assert_allclose(two.correlation, one.correlation, atol=1e-6)
    np.testing.assert_allclose(two.resolution, 2 * one.resolution, rtol=1e-5)


def test_a_curve_that_never_falls_ends_at_the_grid_and_one_that_never_rises_at_the_field_of_view():
    y = noise((20, 22, 24))
    np.testing.assert_allclose(effective_resolution(y, y, voxel_size=(1.5, 1.0, 1.25)), 2.0, rtol=0.1)
    np.testing.assert_allclose(effective_resolution(y, y, voxel_size=1.0), 2.0, rtol=1e-5)
    np.testing.assert_allclose(effective_resolution(-y, y, voxel_size=1.0), 20.0, rtol=1e-5)
    np.testing.assert_allclose(effective_resolution(np.zeros_like(y), y, voxel_size=(1.5, 1.0, 0.5)), 12.0, rtol=1e-5)


def test_the_half_bit_threshold_falls_with_the_number_of_samples():
    """n → ∞: 0.2071 / 1.2071; n = 1: 1 [van Heel & Schatz 2005, Eq. 17 and Table 1]."""
    found = fourier_shell_correlation(noise((40, 40, 40)), noise((40, 40, 40), 1), voxel_size=1.0, threshold="half-bit")
    assert (np.diff(found.threshold) < 0).all()
    np.testing.assert_allclose(found.threshold, 0.2071 / 1.2071, atol=1.6 / np.sqrt(np.asarray(found.samples)).min())
    n = np.asarray(found.samples)[-1]
    np.testing.assert_allclose(found.threshold[-1], (0.2071 + 1.9102 / n**0.5) / (1.2071 + 0.9102 / n**0.5), rtol=1e-6)


def ball(n):
    return sum((i - (n - 1) / 2) ** 2 for i in np.indices((n, n, n))) < (0.3 * n) ** 2


def test_what_lies_beyond_the_fading_edge_does_not_count():
    y, inside = noise((32, 32, 32)), ball(32)
    x = y + noise((32, 32, 32), 1)
    reached = sum((i - 15.5) ** 2 for i in np.indices((32, 32, 32))) < (0.3 * 32 + FADE) ** 2
    one, two = (fourier_shell_correlation(np.where(reached, x, v), y, voxel_size=1.0, mask=inside).correlation for v in (0, 50))
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_a_mask_lends_unrelated_images_no_correlation():
    """Two noises share nothing but the mask; with offsets, a mask without fading edge and mean would correlate them near 1."""
    x, y, inside = noise((48, 48, 48)) + 20, noise((48, 48, 48), 1) + 20, ball(48)
    found = fourier_shell_correlation(x, y, voxel_size=1.0, mask=inside)
    enough = np.asarray(found.samples) > 2000
    assert np.abs(np.asarray(found.correlation)[enough]).max() < 0.2
    hard = fourier_shell_correlation(x * inside, y * inside, voxel_size=1.0).correlation
    assert np.asarray(hard)[enough].max() > 0.5


@pytest.mark.parametrize(
    "more, message",
    [
        ({"threshold": "0.143"}, "one of 1/2, 1/7, half-bit, got '0.143'"),
        ({"voxel_size": (1.0, 1.0)}, r"one voxel size or 3, in mm, got the shape \(2,\)"),
        ({"voxel_size": (1.0, 1.0, -1.0)}, "voxel sizes are positive"),
    ],
)
def test_what_makes_no_sense_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        fourier_shell_correlation(noise((8, 8, 8)), noise((8, 8, 8)), **{"voxel_size": 1.0, **more})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_is_lost_along_one_axis_only_is_that_axis_resolution(axis):
    """As of thick slices: the mean over all directions hardly sees it."""
    shape, size, limit = (40, 48, 44), (1.0, 0.8, 1.0), 0.125
    y = noise(shape)
    frequency = np.abs(np.fft.fftfreq(shape[axis], size[axis])).reshape([-1 if a == axis else 1 for a in range(3)])
    x = np.fft.ifftn(np.fft.fftn(y) * (frequency <= limit)).real
    found = np.asarray(axis_resolutions(x, y, voxel_size=size))
    step = 1 / min(n * d for n, d in zip(shape, size, strict=True))
    assert abs(1 / found[axis] - limit) <= 1.5 * step
    others = [a for a in range(3) if a != axis]
    np.testing.assert_allclose(found[others], [2 * size[a] for a in others], rtol=0.1)
    assert coarsest_resolution(x, y, voxel_size=size) == found[axis]
    assert effective_resolution(x, y, voxel_size=size) < found[axis] / 2


def test_a_slice_has_a_resolution_along_each_of_its_sides():
    y = noise((2, 64, 48, 1))
    x = np.fft.ifft(np.fft.fft(y, axis=1) * (np.abs(np.fft.fftfreq(64)) <= 0.2).reshape(1, -1, 1, 1), axis=1).real
    rows, columns = np.asarray(axis_resolutions(x, y, voxel_size=1.0)).T
    np.testing.assert_allclose(rows, 5, rtol=0.15)
    np.testing.assert_allclose(columns, 2, rtol=0.05)
