"""Parity with the DDIMScheduler and DDPMScheduler of diffusers, over whole chains, with the same network and the same noise.

Theirs counts steps from 0, ours from 1: their timestep t is our t + 1, and the time fed to the network is the same number.
Their `trailing` steps T // S back from each time, ours to the next time, so only an S that divides T is compared beyond its times.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.diffusion.process import add_noise, target
from jaxsr.diffusion.sampling import draw_noise, sample, sampling_times
from jaxsr.diffusion.schedule import level_at, make_schedule

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SHAPE = (8, 8, 4)
THEIR_KIND = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
THEIR_PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
every_prediction = pytest.mark.parametrize("prediction", THEIR_PREDICTION)


def both(scheduler_class, steps=1000, *, kind="scaled_linear", beta_start=8.5e-4, beta_end=1.2e-2, zero_terminal_snr=False, **options):
    """The same schedule, ours and theirs."""
    ours = make_schedule(kind, steps, beta_start=beta_start, beta_end=beta_end, reference_steps=steps, zero_terminal_snr=zero_terminal_snr)
    if scheduler_class is diffusers.DDIMScheduler:
        options |= {"set_alpha_to_one": True}
    theirs = scheduler_class(
        num_train_timesteps=steps,
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule=THEIR_KIND[kind],
        rescale_betas_zero_snr=zero_terminal_snr,
        **{"clip_sample": False, "steps_offset": 0, **options},
    )
    return ours, theirs


def network(x, time):
    """A fixed nonlinear function of x and t, for torch and jax alike."""
    return x / (1 + x * x) * (0.5 + time / 1000) + 0.1 * x * (time / 1000) ** 2 - 0.05


def ours_over_the_chain(schedule, keys, **options):
    got = sample(schedule, lambda x_t, level: network(x_t, level.time[:, None, None, None]), keys, SHAPE, trajectory=True, **options)
    return np.asarray(got.x0), np.asarray(got.trajectory)


def theirs_over_the_chain(scheduler, keys, steps, step):
    """`step(output, t, x, noise)` is one call of their scheduler's."""
    scheduler.set_timesteps(steps)
    x, estimates = torch.from_numpy(np.array(draw_noise(keys, 0, SHAPE))), []
    for i, t in enumerate(scheduler.timesteps):
        noise = torch.from_numpy(np.array(draw_noise(keys, i + 1, SHAPE)))
        result = step(network(x, float(t)), t, x, noise)
        x = result.prev_sample
        estimates.append(result.pred_original_sample.numpy())
    return x.numpy(), np.stack(estimates)


def assert_same(ours, theirs):
    """Every step's x̂_0, each relative to its own size, and the result."""
    (x0, estimates), (their_x0, their_estimates) = ours, theirs
    for estimate, theirs_then in zip(estimates, their_estimates, strict=True):
        np.testing.assert_allclose(estimate, theirs_then, rtol=1e-4, atol=1e-4 * np.abs(theirs_then).max())
    np.testing.assert_allclose(x0, their_x0, rtol=1e-4, atol=1e-4 * np.abs(their_x0).max())


@every_prediction
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_that_of_diffusers(prediction, spacing, eta):
    schedule, theirs = both(diffusers.DDIMScheduler, prediction_type=THEIR_PREDICTION[prediction], timestep_spacing=spacing)
    keys = jax.random.split(jax.random.key(0), 2)

    def step(output, t, x, noise):
        return theirs.step(output, t, x, eta=eta, variance_noise=noise if eta else None)

    assert_same(
        ours_over_the_chain(schedule, keys, steps=50, prediction=prediction, spacing=spacing, eta=eta),
        theirs_over_the_chain(theirs, keys, 50, step),
    )


@every_prediction
def test_bounded_ddim_is_that_of_diffusers_with_the_clipped_output(prediction):
    schedule, theirs = both(
        diffusers.DDIMScheduler, prediction_type=THEIR_PREDICTION[prediction], timestep_spacing="trailing", clip_sample=True
    )
    keys = jax.random.split(jax.random.key(1), 2)

    def step(output, t, x, noise):
        return theirs.step(output, t, x, eta=1.0, use_clipped_model_output=True, variance_noise=noise)

    assert_same(
        ours_over_the_chain(schedule, keys, steps=50, prediction=prediction, eta=1.0, bounds=lambda x0: jnp.clip(x0, -1, 1)),
        theirs_over_the_chain(theirs, keys, 50, step),
    )


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_ddim_from_pure_noise_is_that_of_diffusers(prediction):
    schedule, theirs = both(
        diffusers.DDIMScheduler, zero_terminal_snr=True, prediction_type=THEIR_PREDICTION[prediction], timestep_spacing="trailing"
    )
    keys = jax.random.split(jax.random.key(2), 2)
    assert_same(
        ours_over_the_chain(schedule, keys, steps=50, prediction=prediction),
        theirs_over_the_chain(theirs, keys, 50, lambda output, t, x, noise: theirs.step(output, t, x)),
    )


@every_prediction
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [50, 10])
def test_ancestral_sampling_is_ddpm_of_diffusers(prediction, clip, steps, monkeypatch):
    """Over all T = 50 steps, and over 10 of them; their noise is drawn inside the step, so the draw is replaced by ours."""
    schedule, theirs = both(
        diffusers.DDPMScheduler,
        50,
        kind="linear",
        beta_start=1e-3,
        beta_end=0.2,
        prediction_type=THEIR_PREDICTION[prediction],
        variance_type="fixed_small",
        timestep_spacing="leading",
        clip_sample=clip,
    )
    keys = jax.random.split(jax.random.key(3), 2)

    def step(output, t, x, noise):
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *args, **kwargs: noise)
        return theirs.step(output, t, x)

    bounds = (lambda x0: jnp.clip(x0, -1, 1)) if clip else None
    assert_same(
        ours_over_the_chain(schedule, keys, steps=steps, prediction=prediction, spacing="leading", eta=1.0, bounds=bounds),
        theirs_over_the_chain(theirs, keys, steps, step),
    )


@pytest.mark.parametrize("kind", THEIR_KIND)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_schedules_are_those_of_diffusers(kind, zero_terminal_snr):
    """Their float32 products have lost digits of 1 − ᾱ at the first steps and of ᾱ at the last, so both are compared absolutely."""
    ours, theirs = both(diffusers.DDIMScheduler, kind=kind, zero_terminal_snr=zero_terminal_snr)
    np.testing.assert_allclose(ours.signal**2, theirs.alphas_cumprod.numpy(), atol=2e-6)


def test_noised_images_are_those_of_diffusers():
    schedule, theirs = both(diffusers.DDPMScheduler)
    x0, noise = jax.random.normal(jax.random.key(4), (2, 5, *SHAPE))
    t = jnp.array([1, 2, 17, 500, 1000])
    expected = theirs.add_noise(*(torch.from_numpy(np.array(a)) for a in (x0, noise, t - 1)))
    np.testing.assert_allclose(add_noise(x0, noise, level_at(schedule, t)), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_velocity_is_that_of_diffusers():
    schedule, theirs = both(diffusers.DDPMScheduler)
    x0, noise = jax.random.normal(jax.random.key(5), (2, 4, *SHAPE))
    t = jnp.array([1, 17, 500, 1000])
    expected = theirs.get_velocity(*(torch.from_numpy(np.array(a)) for a in (x0, noise, t - 1)))
    np.testing.assert_allclose(target("v", x0, noise, level_at(schedule, t)), expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 3, 7, 20, 50, 999, 1000])
def test_sampling_times_are_those_of_diffusers_less_one(spacing, steps):
    _, theirs = both(diffusers.DDIMScheduler, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    np.testing.assert_array_equal(sampling_times(1000, steps, spacing) - 1, theirs.timesteps.numpy())
