"""Laws of sampling. For a Gaussian target the optimal network is known, and so is everything a sampler makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.diffusion.process import target
from jaxsr.diffusion.sampling import draw_noise, sample, sampling_times
from jaxsr.diffusion.schedule import make_schedule

MEAN, DEVIATION = 0.3, 0.5
PREDICTIONS = ("eps", "x0", "v")
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


def chain(steps=1000, zero_terminal_snr=False):
    """DDPM's own schedule [Ho et al. 2020, §4]; at T = 1000 nothing is left of the signal (√ᾱ_T = 0.006)."""
    return make_schedule("linear", steps, beta_start=1e-4, beta_end=2e-2, reference_steps=1000, zero_terminal_snr=zero_terminal_snr)


def keys_of(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def best_denoiser(prediction):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, DEVIATION²), said as `prediction`."""

    def denoise(x_t, level):
        signal, sigma = (a[:, None, None, None] for a in level[:2])
        gain = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + sigma**2)
        x0 = MEAN + gain * (x_t - signal * MEAN)
        eps = sigma * (x_t - signal * MEAN) / (signal**2 * DEVIATION**2 + sigma**2)  # (x_t − signal x_0) / sigma
        return target(prediction, x0, eps, level)

    return denoise


def affine_sampler(schedule, times, eta):
    """What `best_denoiser` and Eq. 6 make of x_T, in float64: x = slope · x_T + offset + N(0, variance)."""
    alpha_bar = np.append(1.0, np.exp(np.asarray(schedule.log_alpha_bar, np.float64)))
    slope, offset, variance = 1.0, 0.0, 0.0
    for t, s in zip(times, np.append(times[1:], 0), strict=True):
        a, b = alpha_bar[t], alpha_bar[s]
        noise = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        gain = np.sqrt(a) * DEVIATION**2 / (a * DEVIATION**2 + 1 - a)
        x0 = gain, MEAN * (1 - gain * np.sqrt(a))  # slope and offset of x̂_0 in x_t
        eps = (1 - np.sqrt(a) * x0[0]) / np.sqrt(1 - a), -np.sqrt(a) * x0[1] / np.sqrt(1 - a)
        step = [np.sqrt(b) * of_x0 + np.sqrt(1 - b - noise) * of_eps for of_x0, of_eps in zip(x0, eps, strict=True)]
        slope, offset, variance = step[0] * slope, step[0] * offset + step[1], step[0] ** 2 * variance + noise
    return slope, offset, variance


@every_prediction
@pytest.mark.parametrize("spacing, steps", [("trailing", 1), ("leading", 30), ("trailing", 1000)])
def test_ddim_with_the_best_network_for_a_gaussian_is_the_affine_map_of_the_closed_form(prediction, spacing, steps):
    """Teacher, Eq. 6, η = 0: a linear recursion."""
    schedule, keys = chain(), keys_of(2)
    slope, offset, _ = affine_sampler(schedule, sampling_times(1000, steps, spacing), 0.0)
    x0 = sample(schedule, best_denoiser(prediction), keys, (8, 8, 1), steps=steps, prediction=prediction, spacing=spacing).x0
    atol = 1e-4 if prediction == "eps" else 2e-5  # ε̂ is divided by √ᾱ_T = 0.006, and its rounding with it
    np.testing.assert_allclose(x0, slope * draw_noise(keys, 0, (8, 8, 1)) + offset, atol=atol)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_over_all_steps_the_samples_of_a_gaussian_have_its_mean_and_deviation(eta):
    """The closed form says so (to what T = 1000 leaves undone), and the samples agree with it within their standard error."""
    schedule, keys, shape = chain(), keys_of(4), (64, 64, 1)
    slope, offset, variance = affine_sampler(schedule, sampling_times(1000, 1000, "trailing"), eta)
    np.testing.assert_allclose([offset, np.hypot(slope, np.sqrt(variance))], [MEAN, DEVIATION], rtol=0.01)

    x0 = sample(schedule, best_denoiser("eps"), keys, shape, steps=1000, eta=eta).x0
    deviation, n = np.hypot(slope, np.sqrt(variance)), x0.size
    assert abs(float(x0.mean()) - offset) < 4 * deviation / np.sqrt(n)
    assert abs(float(x0.std()) - deviation) < 4 * deviation / np.sqrt(2 * n)


def test_many_ddim_steps_follow_the_probability_flow():
    """Song et al. 2021, §4.3: the ODE keeps (x − √ᾱ m) / √(ᾱ s² + 1 − ᾱ), so x_0 = m + s (x_T − √ᾱ_T m) / √(ᾱ_T s² + 1 − ᾱ_T)."""
    keys, shape = keys_of(2), (8, 8, 1)
    schedule = chain(5000)
    a, x_end = float(schedule.signal[-1]) ** 2, draw_noise(keys, 0, shape)
    flow = MEAN + DEVIATION * (x_end - np.sqrt(a) * MEAN) / np.sqrt(a * DEVIATION**2 + 1 - a)
    np.testing.assert_allclose(sample(schedule, best_denoiser("v"), keys, shape, steps=5000, prediction="v").x0, flow, atol=2e-3)


@every_prediction
@pytest.mark.parametrize("steps, eta", [(1, 0.0), (100, 1.0)])
def test_a_network_that_knows_x0_gets_x0(prediction, steps, eta):
    """Teacher, Eq. 6 with the true ε, (x_t − √ᾱ x_0) / √(1 − ᾱ), of whatever x_t it is shown."""
    truth = jax.random.uniform(jax.random.key(5), (2, 8, 8, 1), minval=-1)

    def denoise(x_t, level):
        signal, sigma = (a[:, None, None, None] for a in level[:2])
        return target(prediction, truth, (x_t - signal * truth) / sigma, level)

    x0 = sample(chain(100), denoise, keys_of(2), (8, 8, 1), steps=steps, prediction=prediction, eta=eta).x0
    np.testing.assert_allclose(x0, truth, atol=1e-4 if (prediction, steps) == ("eps", 1) else 1e-5)  # its rounding is divided by √ᾱ_T


def within_one(x0):
    return jnp.clip(x0, -1, 1)


def curved(x_t, level):
    """A network made of arithmetic alone, the same for jax, numpy and whatever the rest of the batch is."""
    return x_t / (1 + x_t * x_t) * (1 + level.signal[:, None, None, None])


@pytest.mark.parametrize("bound", [1.0, 0.2, np.inf])
def test_eta_1_over_all_steps_is_the_ancestral_posterior(bound):
    """Ho et al. 2020, Eqs. 6–7 and Algorithm 2, written out in float64 with the bounded x̂_0 and the same noise."""
    steps, keys, shape = 50, keys_of(2), (8, 8, 1)
    schedule = chain(steps)
    got = sample(schedule, curved, keys, shape, steps=steps, eta=1.0, bounds=lambda x0: jnp.clip(x0, -bound, bound))

    alpha_bar = np.append(1.0, np.exp(np.asarray(schedule.log_alpha_bar, np.float64)))
    x = np.asarray(draw_noise(keys, 0, shape), np.float64)
    for i, t in enumerate(range(steps, 0, -1)):
        a, before = alpha_bar[t], alpha_bar[t - 1]
        alpha = a / before
        eps = x / (1 + x * x) * (1 + np.sqrt(a))
        x0 = np.clip((x - np.sqrt(1 - a) * eps) / np.sqrt(a), -bound, bound)
        mean = np.sqrt(before) * (1 - alpha) / (1 - a) * x0 + np.sqrt(alpha) * (1 - before) / (1 - a) * x
        x = mean + np.sqrt((1 - before) / (1 - a) * (1 - alpha)) * np.asarray(draw_noise(keys, i + 1, shape), np.float64)
    np.testing.assert_allclose(got.x0, x, rtol=1e-4, atol=1e-4 * np.abs(x).max())


@pytest.mark.parametrize("total", [10, 1000, 5000])
@pytest.mark.parametrize("steps", [1, 3, 7, 10])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_sampling_times_fall_inside_the_chain(total, steps, spacing):
    times = sampling_times(total, steps, spacing)
    assert times.shape == (steps,)
    assert (np.diff(times) < 0).all()
    assert times[0] <= total
    assert times[-1] >= 1


@pytest.mark.parametrize("steps", [1, 3, 10, 1000])
def test_trailing_times_start_at_the_end_of_the_chain(steps):
    """10-teacher, Diffusion: t_i = round(T (S − i) / S)."""
    times = sampling_times(1000, steps, "trailing")
    assert times[0] == 1000
    assert times.tolist() == [round(1000 * (steps - i) / steps) for i in range(steps)]


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_all_steps_are_all_steps(spacing):
    assert sampling_times(50, 50, spacing).tolist() == list(range(50, 0, -1))


def test_the_network_is_asked_at_the_sampling_times_and_told_their_levels():
    schedule, told = chain(), []

    def denoise(x_t, level):
        jax.debug.callback(lambda *values: told.append([np.asarray(v) for v in values]), *level, ordered=True)
        return x_t

    sample(schedule, denoise, keys_of(2), (8, 8, 1), steps=7).x0.block_until_ready()
    jax.effects_barrier()
    at = sampling_times(1000, 7, "trailing") - 1
    for field, values in zip(("signal", "sigma", "time"), zip(*told, strict=True), strict=True):
        np.testing.assert_allclose(np.stack(values), np.tile(np.asarray(getattr(schedule, field))[at, None], 2), rtol=1e-6)


def test_a_slice_does_not_depend_on_the_others_in_its_batch():
    keys = keys_of(2)
    together, alone = (sample(chain(50), curved, some, (8, 8, 1), steps=10, eta=1.0, bounds=within_one).x0 for some in (keys, keys[1:]))
    np.testing.assert_allclose(together[1:], alone, rtol=1e-6, atol=1e-6)


def test_noise_is_keyed_by_slice_and_by_draw():
    """Habits: everything is a function of its key. Draws differ between slices and between steps, and are standard normal."""
    keys = keys_of(4)
    first, second = draw_noise(keys, 0, (32, 32, 1)), draw_noise(keys, 1, (32, 32, 1))
    np.testing.assert_array_equal(draw_noise(keys[::-1], 0, (32, 32, 1))[::-1], first)
    independent = np.stack([first, second]).reshape(8, -1)
    np.testing.assert_allclose(independent @ independent.T / 1024, np.eye(8), atol=0.2)


def test_sampling_compiles_once_whatever_the_keys_and_the_schedules_values():
    traces = []

    @jax.jit
    def run(schedule, keys):
        traces.append(keys.shape)
        return sample(schedule, curved, keys, (8, 8, 1), steps=5, eta=1.0).x0

    results = [run(chain(50), keys_of(2, seed)) for seed in range(3)]
    run(make_schedule("linear", 50, beta_start=1e-4, beta_end=1e-2, reference_steps=1000), keys_of(2))
    assert traces == [(2,)]
    assert not np.allclose(results[0], results[1])


def test_the_trajectory_is_every_estimate_of_x0_and_ends_in_the_result():
    asked = sample(chain(50), curved, keys_of(2), (8, 8, 1), steps=6, eta=1.0, trajectory=True)
    assert asked.trajectory.shape == (6, 2, 8, 8, 1)
    rounding = 1e-6 * float(np.abs(asked.x0).max())  # each output is its own loop to the compiler, free to contract its own multiply-adds
    np.testing.assert_allclose(asked.trajectory[-1], asked.x0, rtol=0, atol=rounding)
    plain = sample(chain(50), curved, keys_of(2), (8, 8, 1), steps=6, eta=1.0)
    assert plain.trajectory is None
    np.testing.assert_allclose(plain.x0, asked.x0, rtol=0, atol=rounding)


def test_bounds_hold_and_the_fraction_they_changed_is_reported():
    """Only one entry in four of the x̂_0 of every step is out of range; entries on the bound are not counted."""

    def denoise(x_t, level):
        return jnp.broadcast_to(jnp.array([3.0, 0.5, -1.0, 1.0] * 2), (2, 8, 8))[..., None]

    got = sample(chain(50), denoise, keys_of(2), (8, 8, 1), steps=5, prediction="x0", eta=1.0, bounds=within_one, trajectory=True)
    assert float(np.abs(got.trajectory).max()) == 1
    np.testing.assert_array_equal(got.clipped, [0.25, 0.25])
    assert not sample(chain(50), denoise, keys_of(2), (8, 8, 1), steps=5, prediction="x0").clipped.any()


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("steps, eta", [(1, 0.0), (10, 1.0)])
def test_sampling_from_pure_noise_is_finite_and_gives_the_gaussian(prediction, eta, steps):
    """Lin et al. 2024, §3: √ᾱ_T = 0, so x_T is exactly what sampling starts from, and a first step sees the mean alone."""
    schedule, keys, shape = chain(zero_terminal_snr=True), keys_of(2), (64, 64, 1)
    x0 = sample(schedule, best_denoiser(prediction), keys, shape, steps=steps, prediction=prediction, eta=eta).x0
    slope, offset, variance = affine_sampler(schedule, sampling_times(1000, steps, "trailing"), eta)
    deviation = np.hypot(slope, np.sqrt(variance))
    np.testing.assert_allclose(offset, MEAN, atol=1e-3)
    assert abs(float(x0.mean()) - offset) <= 4 * deviation / np.sqrt(x0.size) + 1e-6
    assert abs(float(x0.std()) - deviation) <= 4 * deviation / np.sqrt(2 * x0.size) + 1e-6


def test_one_step_from_pure_noise_is_the_mean():
    """E[x_0 | nothing]; no multiple of x_T gets into it."""
    x0 = sample(chain(zero_terminal_snr=True), best_denoiser("v"), keys_of(2), (8, 8, 1), steps=1, prediction="v").x0
    np.testing.assert_allclose(x0, MEAN, rtol=1e-6)


def test_samples_are_float32_whatever_the_network_computes_in():
    x0 = sample(chain(50), lambda x, level: x.astype(jnp.bfloat16), keys_of(2), (8, 8, 1), steps=3).x0
    assert x0.dtype == jnp.float32


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": 0}, "1…50.*got 0"),
        ({"steps": 51}, "1…50.*got 51"),
        ({"eta": 1.5}, "got 1.5"),
        ({"eta": -0.1}, "got -0.1"),
        ({"spacing": "quadratic"}, "'quadratic'"),
        ({"prediction": "score"}, "'score'"),
        ({"schedule": chain(50, zero_terminal_snr=True)}, "zero_terminal_snr"),
    ],
)
def test_wrong_values_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        sample(**{"schedule": chain(50), "denoise": curved, "keys": keys_of(1), "shape": (8, 8, 1), "steps": 5, **wrong})
