"""Laws of all losses that give one value a slice."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.losses.edges import gradient_errors, sobel_errors
from jaxsr.losses.intensity import histogram_errors, local_contrast_errors, wasserstein_errors
from jaxsr.losses.overlap import cross_entropies, dice_errors
from jaxsr.losses.pixels import absolute_errors, squared_errors
from jaxsr.losses.spectra import fourier_errors, stft_errors

HOMOGENEOUS = {  # and of which degree
    "absolute": (absolute_errors, 1),
    "squared": (squared_errors, 2),
    "gradients": (gradient_errors, 1),
    "Sobel": (sobel_errors, 2),
    "frequencies": (fourier_errors, 2),
    "magnitudes": (partial(fourier_errors, form="magnitude"), 2),
    "windows": (partial(stft_errors, windows=(4, 8)), 2),
    "windows' magnitudes": (partial(stft_errors, windows=(4, 8), form="magnitude"), 2),
    "Wasserstein": (wasserstein_errors, 1),
}
OF_A_CHANNEL = {name: loss for name, (loss, _) in HOMOGENEOUS.items() if name != "Wasserstein"} | {"local contrast": local_contrast_errors}
DISTANCES = OF_A_CHANNEL | {"Wasserstein": wasserstein_errors, "histogram": histogram_errors, "Dice": dice_errors}
EVERY = DISTANCES | {"cross-entropy": cross_entropies}


def each(losses):
    return pytest.mark.parametrize("loss", losses.values(), ids=losses.keys())


@each(EVERY)
def test_a_slice_costs_what_it_costs_alone_also_compiled_and_under_vmap(loss, latents):
    x, y = latents()
    whole = loss(x, y)
    assert whole.shape == (3,)
    np.testing.assert_allclose(whole[1:2], loss(x[1:2], y[1:2]), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(x[:, None], y[:, None])[:, 0], whole, rtol=1e-5)


@each(OF_A_CHANNEL)
def test_channels_cost_their_mean(loss, latents):
    x, y = latents()
    channels = [loss(x[..., c : c + 1], y[..., c : c + 1]) for c in range(5)]
    np.testing.assert_allclose(loss(x, y), np.mean(channels, axis=0), rtol=1e-5)


@each(DISTANCES)
def test_it_is_symmetric_and_equal_arrays_cost_nothing_and_are_a_minimum(loss, latents):
    x, y = latents()
    np.testing.assert_allclose(loss(x, y), loss(y, x), rtol=1e-5)
    value, slope = jax.value_and_grad(lambda x, y: loss(x, y).sum())(x, x)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-7)


@each(EVERY)
def test_it_is_float32_and_so_is_what_it_is_made_of(loss, latents):
    x, y = (jnp.asarray(z, jnp.bfloat16) for z in latents())
    value = loss(x, y)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, loss(x.astype(jnp.float32), y.astype(jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize("loss, degree", HOMOGENEOUS.values(), ids=HOMOGENEOUS.keys())
def test_it_goes_with_a_power_of_the_unit_and_its_gradient_is_that_of_one(loss, degree, latents):
    """Euler's theorem: ⟨x, ∂/∂x⟩ + ⟨y, ∂/∂y⟩ is `degree` times the loss."""
    x, y = latents(1, 8, 8, 2)
    np.testing.assert_allclose(loss(3 * x, 3 * y), 3**degree * loss(x, y), rtol=1e-5)
    value, slopes = jax.jit(jax.value_and_grad(lambda x, y: loss(x, y).sum(), (0, 1)))(x, y)
    np.testing.assert_allclose((x * slopes[0]).sum() + (y * slopes[1]).sum(), degree * value, rtol=1e-5)


@each(EVERY)
def test_it_is_finite_with_its_gradient_where_images_are_flat(loss, latents):
    x, _ = latents()
    value_and_slope = jax.jit(jax.value_and_grad(lambda x, y: loss(x, y).sum()))
    for level in (0, -1, 0.3):
        for other in (x, 0 * x, 0 * x + 0.3):
            value, slope = value_and_slope(0 * x + level, other)
            assert np.isfinite(value)
            assert np.isfinite(slope).all()
