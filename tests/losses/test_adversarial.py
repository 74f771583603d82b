"""Laws of the adversarial errors and of R1."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.losses.adversarial import discriminator_errors, generator_errors, r1_penalty

KINDS = ("hinge", "nonsaturating")


def logits(value, batch=2):
    return jnp.full((batch, 3, 4, 1), value, jnp.float32)


@pytest.mark.parametrize("kind, discriminator, generator", [("hinge", 2, 0), ("nonsaturating", math.log(4), math.log(2))])
def test_who_cannot_tell_pays_what_the_papers_say(kind, discriminator, generator):
    """Goodfellow et al., Theorem 1: log 4."""
    np.testing.assert_allclose(discriminator_errors(logits(0), logits(0), kind), [discriminator] * 2, rtol=1e-6)
    np.testing.assert_allclose(generator_errors(logits(0), kind), [generator] * 2, rtol=1e-6)


@pytest.mark.parametrize("margin", [1.0, 1.5, 30.0])
def test_a_hinge_costs_nothing_from_its_margin_on_and_has_no_gradient_beyond(margin):
    assert (discriminator_errors(logits(margin), logits(-margin), "hinge") == 0).all()
    if margin > 1:
        gradients = jax.grad(lambda real, fake: discriminator_errors(real, fake, "hinge").sum(), (0, 1))(logits(margin), logits(-margin))
        assert all((g == 0).all() for g in gradients)


def test_within_the_margin_a_hinge_is_linear():
    real, fake = jax.random.uniform(jax.random.key(0), (2, 5, 3, 4, 1), minval=-1, maxval=1)
    expected = 2 - (real - fake).mean((1, 2, 3))
    np.testing.assert_allclose(discriminator_errors(real, fake, "hinge"), expected, rtol=1e-6)
    np.testing.assert_allclose(generator_errors(fake, "hinge"), -fake.mean((1, 2, 3)), rtol=1e-6)


def test_nonsaturating_errors_are_cross_entropies_of_probabilities():
    real, fake = 3 * jax.random.normal(jax.random.key(0), (2, 5, 3, 4, 1))
    of_real, of_fake = (1 / (1 + np.exp(-np.asarray(x, np.float64))) for x in (real, fake))
    expected = -(np.log(of_real) + np.log(1 - of_fake)).mean((1, 2, 3))
    np.testing.assert_allclose(discriminator_errors(real, fake, "nonsaturating"), expected, rtol=1e-5)
    np.testing.assert_allclose(generator_errors(fake, "nonsaturating"), -np.log(of_fake).mean((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_the_best_discriminator_knows_how_likely_a_slice_is_real(p):
    """Goodfellow et al., Proposition 1: where a share p of what is shown is real, D = log p / (1 − p)."""

    def cost(value):
        of_real, of_fake = (discriminator_errors(logits(a), logits(b), "nonsaturating")[0] for a, b in ((value, -1e4), (1e4, value)))
        return p * of_real + (1 - p) * of_fake

    best = math.log(p / (1 - p))
    assert abs(jax.grad(cost)(best)) < 1e-6
    assert cost(best) < min(cost(best - 0.1), cost(best + 0.1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_that_is_found_out_still_learns(kind):
    """The gradient of log(1 − sigmoid(D)), which a nonsaturating error takes the place of, would be nothing."""
    gradient = jax.grad(lambda fake: generator_errors(fake, kind).sum())(logits(-40))
    np.testing.assert_allclose(gradient, logits(-1 / 12), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_of_any_size_have_finite_errors_and_gradients_and_errors_are_float32(kind, dtype):
    def total(real, fake):
        of_both, of_fake = discriminator_errors(real, fake, kind), generator_errors(fake, kind)
        assert of_both.dtype == of_fake.dtype == jnp.float32
        return (of_both + of_fake).sum()

    for a, b in ((1e4, -1e4), (-1e4, 1e4)):
        value, gradients = jax.value_and_grad(total, (0, 1))(logits(a).astype(dtype), logits(b).astype(dtype))
        assert jnp.isfinite(value)
        assert all(jnp.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_pays_for_itself_only_and_a_mean_over_its_patches(kind):
    real, fake = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
    errors = discriminator_errors(real, fake, kind)
    np.testing.assert_allclose(discriminator_errors(real[1:2], fake[1:2], kind), errors[1:2], rtol=1e-6)
    tiled = discriminator_errors(jnp.tile(real, (1, 2, 3, 1)), jnp.tile(fake, (1, 2, 3, 1)), kind)
    np.testing.assert_allclose(tiled, errors, rtol=1e-5)


def test_another_kind_is_refused_by_name():
    with pytest.raises(ValueError, match="got 'wasserstein'"):
        discriminator_errors(logits(0), logits(0), "wasserstein")
    with pytest.raises(ValueError, match="got 'wasserstein'"):
        generator_errors(logits(0), "wasserstein")


def test_r1_of_a_linear_discriminator_is_half_its_squared_length_wherever_it_is_taken():
    w = jax.random.normal(jax.random.key(0), (5, 6, 2))
    x = jax.random.normal(jax.random.key(1), (3, 5, 6, 2))
    penalty = r1_penalty(lambda x: (x * w).sum((1, 2, 3), keepdims=True) + 7, x)
    np.testing.assert_allclose(penalty, jnp.full(3, jnp.square(w).sum() / 2), rtol=1e-5)


def test_r1_can_be_differentiated_by_what_the_discriminator_is_made_of():
    """D(x) = a |x|² / 2: R1 = a² |x|² / 2, whose derivative by a is a |x|²."""
    x = jax.random.normal(jax.random.key(1), (3, 5, 6, 1))
    squares = jnp.square(x).sum((1, 2, 3))

    def penalty(a):
        return r1_penalty(lambda x: a * jnp.square(x).sum((1, 2, 3), keepdims=True) / 2, x)

    np.testing.assert_allclose(penalty(3.0), 4.5 * squares, rtol=1e-5)
    np.testing.assert_allclose(jax.jacobian(penalty)(3.0), 3 * squares, rtol=1e-5)


def test_r1_sums_over_patches_before_it_squares():
    """Of n patches that all see one pixel with slope 1, (n · 1)² / 2, not n / 2."""
    x = jnp.zeros((2, 1, 1, 1))
    np.testing.assert_allclose(r1_penalty(lambda x: jnp.broadcast_to(x, (2, 2, 3, 1)), x), [18, 18])


def test_r1_is_float32_where_slices_are_bfloat16():
    assert r1_penalty(lambda x: x.astype(jnp.bfloat16), jnp.ones((2, 4, 4, 1), jnp.bfloat16)).dtype == jnp.float32
