"""Laws of noise schedules. Each test states one, and cites where it comes from."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.diffusion.schedule import continuous_level, level_at, log_alpha_bar_at, make_schedule, nearest_step

STABLE_DIFFUSION = {"kind": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 1.2e-2, "reference_steps": 1000}
SR3 = {"kind": "linear", "beta_start": 1e-6, "beta_end": 1e-2, "reference_steps": 2000}
COSINE = {"kind": "cosine", "reference_steps": 1000}
EXPERTS = {"kind": "linear", "beta_start": 1e-4, "beta_end": 2e-2, "reference_steps": 1000, "rescale": False}
every_published = pytest.mark.parametrize("published", [STABLE_DIFFUSION, SR3, COSINE], ids=["stable_diffusion", "sr3", "cosine"])


@every_published
@pytest.mark.parametrize("steps", [2, 50, 1000, 5000])
def test_signal_to_noise_at_both_ends_does_not_depend_on_the_number_of_steps(published, steps):
    reference, other = (make_schedule(steps=n, **published) for n in (published["reference_steps"], steps))
    ends = jnp.array([0, -1])
    np.testing.assert_allclose(other.snr[ends], reference.snr[ends], rtol=1e-6)


@every_published
@pytest.mark.parametrize("steps", [500, 2000, 5000])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_signal_only_decreases_and_noise_only_grows(published, steps, zero_terminal_snr):
    schedule = make_schedule(steps=steps, zero_terminal_snr=zero_terminal_snr, **published)
    assert (np.diff(schedule.log_alpha_bar) < 0).all()
    assert (np.diff(schedule.signal) <= 0).all()
    assert (np.diff(schedule.sigma) >= 0).all()


@every_published
def test_a_finer_schedule_runs_along_the_curve_of_the_reference(published):
    """10-teacher, Diffusion: log ᾱ of the reference, interpolated in u. With 2 T − 1 steps every second one is a step of the reference."""
    n = published["reference_steps"]
    reference, finer = make_schedule(steps=n, **published), make_schedule(steps=2 * n - 1, **published)
    np.testing.assert_allclose(finer.log_alpha_bar[::2], reference.log_alpha_bar, rtol=1e-6)


def test_at_the_reference_alpha_bar_is_the_product_of_the_published_betas():
    """Teacher, Eq. 3."""
    betas = np.linspace(8.5e-4**0.5, 1.2e-2**0.5, 1000) ** 2
    schedule = make_schedule(steps=1000, **STABLE_DIFFUSION)
    np.testing.assert_allclose(np.asarray(schedule.signal, np.float64) ** 2, np.cumprod(1 - betas), rtol=2e-6)


def test_the_cosine_curve_is_the_papers():
    """Nichol & Dhariwal 2021, Eq. 17, everywhere but where β is capped (the last step of 1000)."""
    angle = (np.arange(1, 1001) / 1000 + 0.008) / 1.008 * np.pi / 2
    expected = (np.cos(angle) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
    alpha_bar = np.asarray(make_schedule(steps=1000, **COSINE).signal, np.float64) ** 2
    np.testing.assert_allclose(alpha_bar[:-1], expected[:-1], rtol=2e-6)
    np.testing.assert_allclose(alpha_bar[-1], expected[-2] * 1e-3, rtol=2e-6)


def test_the_first_step_adds_exactly_the_first_beta():
    """Teacher, Eq. 2, where float32 hurts most: 1 − ᾱ_1 = β_1 = 1e-6."""
    np.testing.assert_allclose(make_schedule(steps=2000, **SR3).sigma[0] ** 2, 1e-6, rtol=1e-6)


@pytest.mark.parametrize("steps, expected", [(500, 6e-3), (2000, 2e-9), (1000, 4e-5)])
def test_without_rescaling_the_betas_stay_and_a_longer_chain_ends_in_more_noise(steps, expected):
    """40-moediff, Schedules: ᾱ_T of the three experts; to the one digit that is given."""
    schedule = make_schedule(steps=steps, **EXPERTS)
    np.testing.assert_allclose(float(schedule.signal[-1]) ** 2, expected, rtol=0.2)
    np.testing.assert_array_equal(schedule.time, np.arange(steps))


def test_zero_terminal_snr_ends_in_noise_alone_and_keeps_the_first_step():
    """Lin et al. 2024, Algorithm 1: √ᾱ is shifted and scaled, √ᾱ_T = 0."""
    before, after = (make_schedule(steps=5000, zero_terminal_snr=zero, **STABLE_DIFFUSION) for zero in (False, True))
    assert float(after.signal[-1]) == 0
    assert float(after.sigma[-1]) == 1
    assert float(after.snr[-1]) == 0
    np.testing.assert_allclose(after.sigma[0], before.sigma[0], rtol=1e-6)
    old, new = np.asarray(before.signal, np.float64), np.asarray(after.signal, np.float64)
    np.testing.assert_allclose(new, (old - old[-1]) * old[0] / (old[0] - old[-1]), atol=2e-7)


def test_the_time_fed_at_a_thousand_steps_is_exactly_0_to_999():
    np.testing.assert_array_equal(make_schedule(steps=1000, **STABLE_DIFFUSION).time, np.arange(1000))
    np.testing.assert_array_equal(level_at(make_schedule(steps=1000, **STABLE_DIFFUSION), jnp.arange(1, 1001)).time, np.arange(1000))


@pytest.mark.parametrize("steps", [50, 5000])
def test_the_time_fed_means_the_same_noise_at_any_number_of_steps(steps):
    """A network made at 1000 steps is told times of that scale: log ᾱ as a function of the time fed is one curve."""
    reference, other = make_schedule(steps=1000, **STABLE_DIFFUSION), make_schedule(steps=steps, **STABLE_DIFFUSION)
    assert (float(other.time[0]), float(other.time[-1])) == (0, 999)
    np.testing.assert_allclose(np.interp(other.time, reference.time, reference.log_alpha_bar), other.log_alpha_bar, rtol=2e-6)


def test_there_is_no_noise_at_step_zero():
    """ᾱ_0 = 1: the empty product of Teacher, Eq. 3."""
    level = level_at(make_schedule(steps=2000, **SR3), jnp.array([0]))
    assert (float(level.signal[0]), float(level.sigma[0])) == (1, 0)


def test_levels_are_those_of_the_schedule():
    schedule, t = make_schedule(steps=5000, **STABLE_DIFFUSION), jnp.array([1, 17, 5000])
    for of_level, of_schedule in zip(level_at(schedule, t), (schedule.signal, schedule.sigma, schedule.time), strict=True):
        np.testing.assert_allclose(of_level, of_schedule[t - 1], rtol=1e-7)


@every_published
def test_continuous_levels_lie_between_the_neighbours_and_are_linear_in_u(published):
    """SR3, Algorithm 1: √ᾱ ~ U(√ᾱ_t, √ᾱ_{t−1})."""
    schedule, t = make_schedule(steps=2000, **published), jnp.array([1, 2, 1000, 2000])
    here, before = (np.asarray(level_at(schedule, s).signal, np.float64) for s in (t, t - 1))
    for u in (0.0, 0.25, 0.99):
        np.testing.assert_allclose(continuous_level(schedule, t, jnp.full(4, u)).signal, here + u * (before - here), rtol=2e-7)
    np.testing.assert_allclose(continuous_level(schedule, t, jnp.zeros(4)).sigma, level_at(schedule, t).sigma, rtol=1e-6)
    np.testing.assert_allclose(continuous_level(schedule, t, jnp.zeros(4)).time, level_at(schedule, t).time, rtol=1e-6)


def test_the_noise_of_a_continuous_level_keeps_its_digits_where_there_is_almost_none():
    """signal² + sigma² = 1 in float64, where √ᾱ = 1 − 5e-7 (1 − u) rounds to 1 in float32."""
    u = np.array([0.0, 0.5, 0.9, 0.99], np.float32)
    lost = -np.expm1(np.log1p(-1e-6) / 2) * (1 - u.astype(np.float64))
    sigma = continuous_level(make_schedule(steps=2000, **SR3), jnp.ones(4, int), jnp.asarray(u)).sigma
    np.testing.assert_allclose(sigma, np.sqrt(lost * (2 - lost)), rtol=1e-6)


def test_a_schedule_passes_through_jit_and_does_not_retrace_for_other_values():
    traces = []

    @jax.jit
    def snr(schedule):
        traces.append(schedule.steps)
        return schedule.snr

    schedules = [make_schedule("linear", 100, beta_start=1e-4, beta_end=end, reference_steps=1000) for end in (1e-2, 2e-2)]
    for schedule in schedules:
        np.testing.assert_allclose(snr(schedule), schedule.snr, rtol=1e-6)
    assert traces == [100]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"beta_start": 0.02, "beta_end": 0.01}, "beta_start=0.02, beta_end=0.01"),
        ({"beta_start": 0.0}, "beta_start=0.0"),
        ({"beta_end": None}, "beta_end=None"),
        ({"kind": "quadratic"}, "quadratic"),
        ({"steps": 1}, "got 1"),
        ({"reference_steps": 1}, "reference_steps=1"),
    ],
)
def test_wrong_values_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        partial(make_schedule, **{"steps": 100, **SR3})(**wrong)


@pytest.mark.parametrize("steps", [2, 50, 2000])
def test_the_nearest_step_to_a_level_is_what_looking_at_all_finds_and_a_step_s_own_level_is_its_own(steps):
    schedule = make_schedule(steps=steps, **EXPERTS)
    t = jnp.arange(1, steps + 1)
    np.testing.assert_array_equal(nearest_step(schedule, log_alpha_bar_at(schedule, t)), t)
    wanted = jnp.asarray(np.random.default_rng(0).uniform(-25, 0, (7, 9)), jnp.float32)
    distances = np.abs(np.asarray(schedule.log_alpha_bar)[:, None, None] - np.asarray(wanted))
    found = np.asarray(nearest_step(schedule, wanted))
    np.testing.assert_allclose(np.take_along_axis(distances, found[None] - 1, 0)[0], distances.min(0), atol=1e-5)
