"""Laws of Swin's block: what a pixel sees, and what it makes of it [Liu et al. 2021, Eqs. 3–4, Fig. 4]."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import norm

from jaxsr.nn.swin import SwinBlock


def drawn(module, *inputs, scale=0.4):
    """Random weights, biases and norms too, without compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


def grid(height, width, channels=6, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, height, width, channels)), jnp.float32)


def starts(side, window, shifted):
    """Where windows begin along a side, and where the last one ends."""
    first = [0, window // 2] if shifted and side > window else [0, window]
    return [n for n in [*first, *range(first[1] + window, side, window)] if n < side] + [side]


def brute_force(params, x, heads, window, shifted):
    """One slice `[H, W, C]`, pixel by pixel and pair by pair, float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def normed(x, name):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p[name]["scale"] + p[name]["bias"]

    def linear(x, name):
        return x @ p[name]["kernel"] + p[name]["bias"]

    sides, d = x.shape[:2], x.shape[2] // heads
    shifts = [window // 2 if shifted and side > window else 0 for side in sides]
    pixels = list(itertools.product(*map(range, sides)))
    window_of = {i: tuple((n - s) // window for n, s in zip(i, shifts, strict=True)) for i in pixels}
    q, k, v = (
        {i: part.reshape(heads, d) for i, part in zip(pixels, parts, strict=True)}
        for parts in zip(*(np.split(linear(normed(x[i], "norm1"), "qkv"), 3) for i in pixels), strict=True)
    )
    out = np.empty_like(x)
    for i in pixels:
        seen = [j for j in pixels if window_of[j] == window_of[i]]
        bias = np.array([p["bias"][i[0] - j[0] + window - 1, i[1] - j[1] + window - 1] for j in seen])  # [pixels seen, heads]
        weights = softmax([(q[i] * k[j]).sum(-1) / np.sqrt(d) for j in seen] + bias, axis=0)
        y = x[i] + linear(sum(w[:, None] * v[j] for w, j in zip(weights, seen, strict=True)).reshape(-1), "out")
        inner = linear(normed(y, "norm2"), "mlp_in")
        out[i] = y + linear(inner * norm.cdf(inner), "mlp_out")
    return out


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("height, width, window", [(8, 8, 4), (5, 10, 4), (3, 9, 4), (7, 4, 3), (2, 2, 4), (5, 3, 2)])
def test_it_is_its_equations_over_pairs_of_pixels_on_grids_of_any_size(height, width, window, shifted):
    """Liu et al. 2021, Eqs. 3–4: no shift by rolling, no padding and no mask are in the slow one."""
    block, x = SwinBlock(heads=2, window=window, shifted=shifted), grid(height, width)
    variables = drawn(block, x)
    expected = [brute_force(variables["params"], np.float64(one), 2, window, shifted) for one in x]
    np.testing.assert_allclose(jax.jit(block.apply)(variables, x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("height, width", [(8, 12), (5, 10)])
def test_every_window_is_what_it_would_be_if_it_were_the_whole_grid_and_so_is_its_gradient(height, width, shifted):
    """So neither padding nor what rolling brings beside it is seen: a window by itself has neither."""
    block, x, c = SwinBlock(heads=2, shifted=shifted), grid(height, width), grid(height, width, seed=1)
    variables = drawn(block, x)

    @jax.jit
    def run(x, c):
        y, back = jax.vjp(lambda x: block.apply(variables, x), x)
        return y, *back(c)

    whole = run(x, c)
    pieces = [itertools.pairwise(starts(side, 4, shifted)) for side in (height, width)]
    for (top, bottom), (left, right) in itertools.product(*map(list, pieces)):
        cut = np.s_[:, top:bottom, left:right]
        for one, other in zip(whole, run(x[cut], c[cut]), strict=True):
            np.testing.assert_allclose(one[cut], other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("shifted, pixel, rows, columns", [
    (False, (3, 3), slice(0, 4), slice(0, 4)),
    (True, (3, 3), slice(2, 6), slice(2, 6)),  # four windows of the block before
    (True, (7, 1), slice(6, 8), slice(0, 2)),  # a quarter of a window in the corner, not what rolling puts beside it
    (True, (0, 4), slice(0, 2), slice(2, 6)),
])  # fmt: skip
def test_a_pixel_changes_its_window_and_nothing_else(shifted, pixel, rows, columns):
    """Liu et al. 2021, Figs. 2 and 4, on a grid of two by two windows."""
    block, x = SwinBlock(heads=2, shifted=shifted), grid(8, 8)
    apply = jax.jit(lambda x, v=drawn(block, x): block.apply(v, x))
    changed = np.abs(apply(x.at[:, *pixel].add(grid(1, 1, seed=1)[:, 0, 0])) - apply(x)).max(axis=(0, 3))
    expected = np.zeros((8, 8), bool)
    expected[rows, columns] = True
    assert (changed[expected] > 1e-5).all()
    assert (changed[~expected] == 0).all()


def test_without_a_shift_moving_the_grid_by_whole_windows_moves_the_result():
    block, x = SwinBlock(heads=2), grid(8, 12)
    apply = jax.jit(lambda x, v=drawn(block, x): block.apply(v, x))
    by = {"shift": (4, -8), "axis": (1, 2)}
    np.testing.assert_allclose(apply(jnp.roll(x, **by)), jnp.roll(apply(x), **by), atol=1e-5)


def test_only_the_bias_tells_a_window_s_pixels_apart():
    """Permuting the pixels of a window permutes the result where the table is one number, and no longer where it is not."""
    block, x = SwinBlock(heads=2), grid(4, 4)
    apply, variables = jax.jit(block.apply), drawn(block, x)
    permute = lambda a: a.reshape(2, 16, 6)[:, np.random.default_rng(0).permutation(16)].reshape(a.shape)  # noqa: E731
    off = lambda v: np.abs(apply(v, permute(x)) - permute(apply(v, x))).max()  # noqa: E731
    even = {"params": {**variables["params"], "bias": jnp.full((7, 7, 2), 0.7)}}
    assert off(even) < 1e-5
    assert off(variables) > 1e-2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_bias_is_added_to_float32_scores_whatever_is_computed_in(dtype):
    """Two pixels of values ±1 with scores of 0 and biases 100 and 100.25, between which bfloat16 has no number: 1 − tanh ⅛ is left."""
    block, x = SwinBlock(heads=1, window=2, dtype=dtype), jnp.array([[[[1.0, -1.0], [-1.0, 1.0]]]])
    params = jax.tree.map(jnp.zeros_like, drawn(block, x)["params"])
    params["norm1"]["scale"] = jnp.ones(2)
    params["qkv"]["kernel"] = jnp.zeros((2, 6)).at[0, 4].set(1)  # of v, the first feature
    params["out"]["kernel"] = jnp.eye(2)
    params["bias"] = jnp.zeros((3, 3, 1)).at[1, 1].set(100).at[1, 0].set(100.25)
    out = block.apply({"params": params}, x.astype(dtype))
    assert out.dtype == dtype
    np.testing.assert_allclose(np.float32(out[0, 0, 0]), [1 - np.tanh(0.125), -1], rtol=1e-4 if dtype == jnp.float32 else 0.01)


def test_a_block_has_the_parameters_of_the_paper_s():
    """Liu et al. 2021: 12 C² + 13 C of layers and norms, and a bias for each of (2w − 1)² offsets and each head."""
    variables = jax.eval_shape(SwinBlock(heads=6, window=7).init, jax.random.key(0), jnp.ones((1, 8, 8, 96)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 12 * 96**2 + 13 * 96 + 13**2 * 6
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="got 8 channels and 3 heads"):
        jax.eval_shape(SwinBlock(heads=3).init, jax.random.key(0), jnp.ones((1, 4, 4, 8)))
