"""Laws of taking tensors by name: every one is used once, left out under a prefix that says so, or reported."""

import numpy as np
import pytest

from jaxsr.weights.file import WeightsError
from jaxsr.weights.names import Piece, take

NAMES = {"stem/kernel": "conv.weight", "stem/bias": "conv.bias", "table": "embedding.weight", "head/kernel": "head.weight"}
SHAPES = {"stem/kernel": (3, 5, 2, 4), "stem/bias": (4,), "table": (7, 3), "head/kernel": (4, 6)}


def drawn(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def published():
    return {"conv.weight": drawn(4, 2, 3, 5), "conv.bias": drawn(4), "embedding.weight": drawn(7, 3), "head.weight": drawn(6, 4)}


def test_kernels_turn_and_nothing_else_does():
    theirs = published()
    found = take(theirs, NAMES, SHAPES, "test").arrays
    assert {name: array.shape for name, array in found.items()} == SHAPES
    assert found["stem/kernel"][2, 4, 1, 3] == theirs["conv.weight"][3, 1, 2, 4]
    np.testing.assert_array_equal(found["head/kernel"], theirs["head.weight"].T)
    np.testing.assert_array_equal(found["table"], theirs["embedding.weight"])


@pytest.mark.parametrize("ours, theirs", [((1, 1, 2, 4), (4, 2)), ((2, 4), (4, 2, 1, 1)), ((1, 1, 2, 4), (4, 2, 1, 1)), ((2, 4), (4, 2))])
def test_a_linear_layer_is_a_convolution_of_one_pixel(ours, theirs):
    array = drawn(*theirs)
    found = take({"w": array}, {"a/kernel": "w"}, {"a/kernel": ours}, "test").arrays["a/kernel"]
    np.testing.assert_array_equal(found.reshape(2, 4), array.reshape(4, 2).T)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_everything_becomes_float32(dtype):
    found = take({"w": np.arange(4).astype(dtype)}, {"a": "w"}, {"a": (4,)}, "test").arrays["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.arange(4))


def test_a_tensor_that_holds_several_of_ours_is_parted_in_order():
    whole = drawn(12, 5)
    names = {f"{part}/kernel": Piece("qkv", k, 3) for k, part in enumerate("qkv")}
    found = take({"qkv": whole}, names, dict.fromkeys(names, (5, 4)), "test").arrays
    for k, part in enumerate("qkv"):
        np.testing.assert_array_equal(found[f"{part}/kernel"], whole[4 * k : 4 * k + 4].T)


def test_a_matrix_that_lies_as_ours_is_not_turned():
    array = drawn(4, 4)
    found = take({"proj": array}, {"a/kernel": Piece("proj", turned=False)}, {"a/kernel": (4, 4)}, "test").arrays["a/kernel"]
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("change, message", [
    ({"conv.bias": None}, r"the test \(conv.bias is missing\): do"),
    ({"more": drawn(1)}, r"\(more is unknown\)"),
    ({"conv.bias": drawn(5)}, r"\(conv.bias has shape \[5\], expected \[4\]\)"),
    ({"head.weight": drawn(4, 6)}, r"\(head.weight has shape \[4, 6\], expected \[6, 4\] or \[6, 4, 1, 1\]\)"),
    ({"conv.weight": drawn(3, 5, 2, 4)}, r"expected \[4, 2, 3, 5\]\)"),
    ({f"more{i}": drawn(1) for i in range(9)}, r"more0 is unknown, .* and 4 more\)"),
    ({"a\nb": drawn(1)}, r"\(a\\nb is unknown\)"),
])  # fmt: skip
def test_what_does_not_fit_is_reported_by_name(change, message):
    theirs = {name: array for name, array in (published() | change).items() if array is not None}
    with pytest.raises(WeightsError, match=message):
        take(theirs, NAMES, SHAPES, "test", way_out="do")


def test_what_may_be_left_is_counted_by_the_prefix_that_allows_it():
    more = {"text.a": drawn(1), "text.b": drawn(1), "betas": drawn(1)}
    assert take(published() | more, NAMES, SHAPES, "test", leave=("text.", "betas", "absent.")).left == {"text.": 2, "betas": 1}
    with pytest.raises(WeightsError, match=r"\(betas is unknown\)"):
        take(published() | more, NAMES, SHAPES, "test", leave=("text.",))


def test_nothing_is_read_unless_everything_fits():
    class Unreadable:
        shape = (4,)

        def __array__(self):
            raise AssertionError("read")

    with pytest.raises(WeightsError, match="more is unknown"):
        take(published() | {"conv.bias": Unreadable(), "more": drawn(1)}, NAMES, SHAPES, "test")


@pytest.mark.parametrize("names", [{"a": "w", "b": "w"}, {"a": Piece("w", 0, 2)}, {"a": Piece("w", 0, 2), "b": Piece("w", 0, 2)}])
def test_a_table_that_uses_a_tensor_twice_or_not_whole_is_our_mistake(names):
    with pytest.raises(AssertionError):
        take({"w": drawn(4)}, names, dict.fromkeys(names, (2,)), "test")
