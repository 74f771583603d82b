"""Laws of the forward process: x_t, x_0, ε and v are four views of one rotation [Salimans & Ho 2022, App. D]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.diffusion.process import add_noise, check_prediction, eps_from_x0, snr_weight, target, to_eps, to_x0, x0_loss_weight
from jaxsr.diffusion.schedule import Level, level_at, make_schedule

SCHEDULE = make_schedule("scaled_linear", 5000, beta_start=8.5e-4, beta_end=1.2e-2, reference_steps=1000)
ZERO_TERMINAL = make_schedule("scaled_linear", 5000, beta_start=8.5e-4, beta_end=1.2e-2, reference_steps=1000, zero_terminal_snr=True)
TIMES = jnp.array([1, 100, 2500, 5000])
PREDICTIONS = ("eps", "x0", "v")
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


def pair(seed=0, shape=(4, 8, 8, 2)):
    return jax.random.normal(jax.random.key(seed), (2, *shape))


def every_level():
    """From no noise (SNR = ∞) to nothing else (SNR = 0)."""
    return level_at(ZERO_TERMINAL, jnp.array([0, 1, 100, 2500, 4999, 5000]))


def test_noising_a_standard_normal_keeps_it_standard_normal():
    """Teacher, Eq. 4: the two variances ᾱ and 1 − ᾱ sum to one at every t."""
    x0, noise = pair(shape=(64, 32, 32, 1))
    x_t = add_noise(x0, noise, level_at(SCHEDULE, jnp.linspace(1, 5000, 64).astype(int)))
    assert abs(float(x_t.mean())) < 0.01
    assert abs(float(x_t.std()) - 1) < 0.01


def test_a_step_at_a_time_the_noise_adds_up_to_the_marginal():
    """Teacher, Eqs. 2–4: x ← √(1 − β) x + √β z, T times, has mean √ᾱ_T x_0 and variance 1 − ᾱ_T."""
    betas = np.linspace(1e-4, 2e-2, 100)
    schedule = make_schedule("linear", 100, beta_start=1e-4, beta_end=2e-2, reference_steps=100)
    mean, variance = 1.0, 0.0
    for beta in betas:
        mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    level = level_at(schedule, jnp.array([100]))
    np.testing.assert_allclose([level.signal[0], level.sigma[0] ** 2], [mean, variance], rtol=1e-6)


@every_prediction
def test_what_the_network_should_say_gives_back_x0_and_the_noise(prediction):
    """Salimans & Ho 2022, App. D. Dividing by signal or sigma magnifies rounding by that much, and no more."""
    x0, noise = pair()
    level = level_at(SCHEDULE, TIMES)
    x_t, said = add_noise(x0, noise, level), target(prediction, x0, noise, level)
    smallest = np.minimum(level.signal, level.sigma)[:, None, None, None]
    assert (np.abs(to_x0(prediction, said, x_t, level) - x0) * smallest < 1e-6).all()
    assert (np.abs(to_eps(prediction, said, x_t, level) - noise) * smallest < 1e-6).all()


@every_prediction
@pytest.mark.parametrize("other", PREDICTIONS)
def test_conversions_invert(prediction, other):
    """From one prediction to another and back, through (x̂_0, ε̂), for any output of the network, not only a true one."""
    x_t, said = pair(1)
    level = level_at(SCHEDULE, TIMES)
    there = target(other, to_x0(prediction, said, x_t, level), to_eps(prediction, said, x_t, level), level)
    back = target(prediction, to_x0(other, there, x_t, level), to_eps(other, there, x_t, level), level)
    conditioning = np.maximum(level.signal / level.sigma, level.sigma / level.signal)[:, None, None, None]
    assert (np.abs(back - said) < 2e-6 * conditioning).all()


@every_prediction
def test_x0_and_eps_always_explain_x_t(prediction):
    """Teacher, Eq. 4, whatever the network said."""
    x_t, said = pair(2)
    level = level_at(SCHEDULE, TIMES)
    x0 = to_x0(prediction, said, x_t, level)
    np.testing.assert_allclose(add_noise(x0, to_eps(prediction, said, x_t, level), level), x_t, atol=3e-6)
    np.testing.assert_allclose(add_noise(x0, eps_from_x0(x0, x_t, level), level), x_t, atol=3e-6)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_from_pure_noise_nothing_is_divided_by_zero(prediction):
    """At zero terminal SNR x_T is ε itself: ε̂ = x_T, and v = −x_0 [Lin et al. 2024, §3.2]."""
    x_t, said = pair(3)
    level = level_at(ZERO_TERMINAL, jnp.full(4, 5000))
    np.testing.assert_array_equal(to_eps(prediction, said, x_t, level), x_t)
    np.testing.assert_array_equal(to_x0(prediction, said, x_t, level), said if prediction == "x0" else -said)


def test_predicting_eps_from_pure_noise_is_refused():
    with pytest.raises(ValueError, match=r"zero_terminal_snr.*use 'v' or 'x0'"):
        check_prediction(ZERO_TERMINAL, "eps")
    for prediction in PREDICTIONS:
        check_prediction(SCHEDULE, prediction)


@every_prediction
def test_min_snr_weighs_the_error_of_x0_by_the_smaller_of_snr_and_gamma(prediction):
    """Hang et al. 2023, Eq. 9. An error δ of the output is an error (sigma / signal) δ, δ or sigma δ of x̂_0."""
    level = level_at(SCHEDULE, TIMES)
    signal, sigma = (np.asarray(a, np.float64) for a in level[:2])
    amplification = {"eps": sigma / signal, "x0": np.ones(4), "v": sigma}[prediction]
    expected = np.minimum((signal / sigma) ** 2, 5) * amplification**2
    np.testing.assert_allclose(snr_weight(level, "min_snr", 5.0, prediction), expected, rtol=2e-6)


@every_prediction
def test_weights_are_finite_from_no_noise_to_nothing_else(prediction):
    weight = np.asarray(snr_weight(every_level(), "min_snr", 5.0, prediction))
    ends = {"eps": (0, 1), "x0": (5, 0), "v": (0, 0)}[prediction]
    np.testing.assert_allclose(weight[[0, -1]], ends, rtol=1e-6)
    assert np.isfinite(weight).all()


def test_losses_on_x0_are_weighed_by_the_smaller_of_one_and_snr():
    """10-teacher, Diffusion: (1 − ᾱ) / ᾱ, the amplification of one-step estimates, is undone."""
    weight = np.asarray(x0_loss_weight(every_level()))
    assert (weight[0], weight[-1]) == (1, 0)
    np.testing.assert_allclose(x0_loss_weight(level_at(SCHEDULE, TIMES)), np.minimum(1, SCHEDULE.snr[TIMES - 1]), rtol=2e-6)


def test_no_weighting_is_one_everywhere():
    np.testing.assert_array_equal(snr_weight(every_level(), "none", 5.0, "eps"), 1)


@every_prediction
def test_an_output_in_half_precision_is_converted_in_float32(prediction):
    x_t, said = pair(4)
    said, level = said.astype(jnp.bfloat16), level_at(SCHEDULE, TIMES)
    for convert in (to_x0, to_eps):
        expected = convert(prediction, said.astype(jnp.float32), x_t, level)
        np.testing.assert_array_equal(convert(prediction, said, x_t, level), expected, strict=True)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda level, x: target("score", x, x, level), "'score'"),
        (lambda level, x: to_x0("score", x, x, level), "'score'"),
        (lambda level, x: to_eps("score", x, x, level), "'score'"),
        (lambda level, x: check_prediction(SCHEDULE, "score"), "'score'"),
        (lambda level, x: snr_weight(level, "min_snr", 5.0, "score"), "'score'"),
        (lambda level, x: snr_weight(level, "max_snr", 5.0, "eps"), "'max_snr'"),
        (lambda level, x: snr_weight(level, "min_snr", 0.0, "eps"), "gamma > 0, got 0.0"),
    ],
)
def test_wrong_values_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(Level(jnp.ones(1), jnp.zeros(1), jnp.zeros(1)), jnp.ones((1, 2, 2, 1)))
