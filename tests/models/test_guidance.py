"""Laws of the guidance pyramid: it starts as nothing, fits the UNet's levels, and an absent map says nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.bench.count import multiply_adds
from jaxsr.models.guidance import GuidancePyramid
from jaxsr.models.unet import LatentUNet

TINY = {"width": 8, "multipliers": (1, 2), "factor": 4, "base": 8, "groups": 4}
PRESENT, ABSENT = jnp.ones(2), jnp.zeros(2)


def drawn(network, *arguments):
    """Random weights, also where they start at zero."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), *arguments))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def field(channels=3):
    return jax.random.normal(jax.random.key(0), (2, 16, 24, channels))


@pytest.fixture(scope="module")
def tiny():
    pyramid = GuidancePyramid(**TINY)
    return jax.jit(lambda field, present, v=drawn(pyramid, field(), PRESENT): pyramid.apply(v, field, present))


def test_the_residuals_fit_the_published_unet_and_cost_under_three_percent_of_it():
    """Two pyramids, for b of one channel and g of three, beside the 88.17 G multiply-adds of the UNet at the same 256 × 256."""
    spent, flag = 0, jax.ShapeDtypeStruct((1,), jnp.float32)
    for channels in (1, 3):
        x = jax.ShapeDtypeStruct((1, 256, 256, channels), jnp.float32)
        residuals, variables = jax.eval_shape(GuidancePyramid().init_with_output, jax.random.key(0), x, flag)
        spent += multiply_adds(GuidancePyramid().apply, variables, x, flag)
    assert spent < 0.03 * 88.17e9
    latents = jax.ShapeDtypeStruct((1, 32, 32, 8), jnp.float32)
    out, _ = jax.eval_shape(LatentUNet().init_with_output, jax.random.key(0), latents, flag, None, residuals, residuals)
    assert out.shape == (1, 32, 32, 4)


def test_at_the_start_it_says_nothing_but_its_gradient_is_not_zero():
    """Residuals of zero, with which a UNet is exactly the unguided one (tests/models/test_unet.py)."""
    pyramid = GuidancePyramid(**TINY)
    variables = nn.meta.unbox(pyramid.init(jax.random.key(0), field(), PRESENT))

    @jax.jit
    def run(variables):
        residuals = pyramid.apply(variables, field(), PRESENT)
        return sum(residual.sum() for residual in residuals), residuals

    (_, residuals), gradient = jax.value_and_grad(run, has_aux=True)(variables)
    for level, residual in enumerate(residuals):
        assert (residual == 0).all()
        assert np.abs(gradient["params"][f"level{level}_out"]["kernel"]).max() > 0


@pytest.mark.parametrize("garbage", [7.0, np.nan, np.inf])
def test_an_absent_map_is_zeros_whatever_it_holds(tiny, garbage):
    for one, other in zip(tiny(jnp.full_like(field(), garbage), ABSENT), tiny(jnp.zeros_like(field()), ABSENT), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_an_absent_map_holds_has_no_gradient():
    pyramid = GuidancePyramid(**TINY)
    variables = drawn(pyramid, field(), PRESENT)
    by_field = jax.jit(jax.grad(lambda f: sum(r.sum() for r in pyramid.apply(variables, f, jnp.array([0.0, 1.0])))))(field())
    assert (by_field[0] == 0).all()
    assert np.abs(by_field[1]).max() > 0


def test_an_absent_map_is_not_a_map_of_zeros_and_slices_do_not_see_each_other(tiny):
    absent, zeros = tiny(field(), ABSENT), tiny(jnp.zeros_like(field()), PRESENT)
    mixed = tiny(field().at[1].set(0), jnp.array([0.0, 1.0]))
    for level in (0, 1):
        assert np.abs(absent[level] - zeros[level]).max() > 1e-2
        np.testing.assert_allclose(mixed[level][0], absent[level][0], atol=1e-5)
        np.testing.assert_allclose(mixed[level][1], zeros[level][1], atol=1e-5)


def test_a_map_s_size_is_not_lost_in_the_norms(tiny):
    """A constant, as a bias field far from its coil: twice as much is something else."""
    one, two = (tiny(jnp.full_like(field(), value), PRESENT) for value in (0.2, 0.4))
    for level in (0, 1):
        assert np.abs(one[level] - two[level]).max() > 1e-2 * np.abs(one[level]).max()


def test_it_computes_in_its_dtype_with_float32_parameters():
    pyramid = GuidancePyramid(**TINY, dtype=jnp.bfloat16)
    residuals, variables = jax.eval_shape(pyramid.init_with_output, jax.random.key(0), field(), PRESENT)
    assert [(r.shape, r.dtype) for r in residuals] == [((2, 4, 6, 8), jnp.bfloat16), ((2, 2, 3, 16), jnp.bfloat16)]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("changed, shape, message", [
    ({}, (1, 16, 12, 1), "sides must be multiples of 8 for 2 levels, got 16 × 12"),
    ({"factor": 6}, (1, 24, 24, 1), "must be 2, 4, 8, …, got 6"),
    ({"factor": 1}, (1, 24, 24, 1), "must be 2, 4, 8, …, got 1"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(changed, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(GuidancePyramid(**{**TINY, **changed}).init, jax.random.key(0), jnp.zeros(shape), jnp.ones(1))
