"""Laws of how arrays lie: there and back is where one was, and what does not fit is refused."""

import numpy as np
import pytest

from jaxsr.weights.pytorch import from_torch, to_torch


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("ours, shape, linear, theirs", [
    ("a/kernel", (3, 5, 2, 4), False, (4, 2, 3, 5)),
    ("a/kernel", (2, 4), False, (4, 2)),
    ("a/kernel", (1, 1, 2, 4), False, (4, 2, 1, 1)),
    ("a/kernel", (1, 1, 2, 4), True, (4, 2)),
    ("a/bias", (4,), False, (4,)),
    ("a/table", (3, 4), False, (3, 4)),
])  # fmt: skip
def test_there_and_back_is_where_one_was(ours, shape, linear, theirs):
    array = numbers(*shape)
    there = to_torch(ours, array, linear=linear)
    assert there.shape == theirs
    np.testing.assert_array_equal(from_torch(ours, there, shape), array)


def test_a_linear_layer_of_theirs_is_a_convolution_of_ours_where_ours_is_one_and_the_other_way_round():
    kernel = numbers(4, 2)
    np.testing.assert_array_equal(from_torch("a/kernel", kernel, (1, 1, 2, 4))[0, 0], kernel.T)
    np.testing.assert_array_equal(from_torch("a/kernel", kernel[:, :, None, None], (2, 4)), kernel.T)


@pytest.mark.parametrize("ours, theirs, shape", [
    ("a/kernel", (4, 2), (4, 2)),
    ("a/kernel", (4, 2, 3, 3), (2, 4)),
    ("a/kernel", (2, 4, 1, 1), (1, 1, 2, 4)),
    ("a/bias", (4,), (2, 2)),
    ("a/bias", (1, 1, 2, 2), (2, 2)),
])  # fmt: skip
def test_an_array_that_does_not_fit_is_refused_with_name_and_shapes(ours, theirs, shape):
    with pytest.raises(ValueError, match=rf"{ours}: .*\[{theirs[0]}.*does not become \[{shape[0]}"):
        from_torch(ours, numbers(*theirs), shape)
