"""Windows and slabs: what is summed in parts is summed once."""

import jax
import numpy as np
import pytest
from scipy.ndimage import correlate1d

from jaxsr.evaluate.metrics import windows
from jaxsr.evaluate.metrics.windows import correlate, gaussian, halve, halve_mask, map_slabs, sum_slabs

TAPS = gaussian(5, 1.0)


def test_a_window_on_each_axis_is_scipys_without_its_border():
    x = np.random.default_rng(0).random((2, 11, 12, 13, 1))
    filters = [TAPS, gaussian(3, 2.0), np.array([-1.0, 0, 1])]
    expected = x
    for axis, taps in enumerate(filters, 1):
        expected = correlate1d(expected, taps, axis=axis)
    np.testing.assert_allclose(jax.jit(lambda x: correlate(x, filters))(x), expected[:, 2:-2, 1:-1, 1:-1], atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda x: correlate(x, filters, stride=2))(x), expected[:, 2:-2:2, 1:-1:2, 1:-1:2], atol=1e-6)


@pytest.mark.parametrize("slab", [1, 1000, 1 << 20])  # 8 planes at least; 10; all
@pytest.mark.parametrize("masked", [False, True])
def test_slabs_count_every_window_once(monkeypatch, slab, masked):
    monkeypatch.setattr(windows, "SLAB", slab)
    x = np.random.default_rng(0).random((1, 33, 10, 10, 2)).astype(np.float32)
    mask = np.random.default_rng(1).random((1, 33, 10, 10, 1)) < 0.5 if masked else None
    whole = np.asarray(jax.jit(lambda x: correlate(x, TAPS))(x))
    inside = np.ones((1, 29, 6, 6, 1), bool) if mask is None else mask[:, 2:-2, 2:-2, 2:-2]
    (sums,), count = jax.jit(lambda x: sum_slabs(lambda x: (correlate(x, TAPS),), (x,), mask, 5))(x)
    np.testing.assert_allclose(sums, (whole * inside).sum((1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(np.broadcast_to(count, (1, 2)), inside.sum())
    np.testing.assert_allclose(jax.jit(lambda x: map_slabs(lambda x: correlate(x, TAPS), (x,), 5))(x), whole, atol=1e-6)


def test_halving_keeps_means_and_a_block_is_inside_where_half_of_it_is():
    x = np.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(halve(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    assert halve(x[:, :3]).shape == (1, 2, 2, 1)
    mask = (x == 0) | (x == 1) | (x == 2)
    np.testing.assert_array_equal(halve_mask(mask, x.shape)[0, :, :, 0], [[True, False], [False, False]])
