"""Laws of SR3's recipe. A network that knows the answer shows what the recipe does with it."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsr.config import ConfigError, from_dict
from jaxsr.diffusion.process import add_noise, target
from jaxsr.diffusion.sampling import draw_noise
from jaxsr.diffusion.schedule import Level, continuous_level
from jaxsr.experiment import Experiment
from jaxsr.losses.cubes import over_axes, slabs
from jaxsr.methods.base import Request
from jaxsr.methods.condition import Batch, Condition
from jaxsr.methods.sr3 import EASY, Sr3, Sr3Config
from jaxsr.nn.resnet import ResnetBlock

NETWORK = {"width": 8, "multipliers": (1,), "blocks": 1, "attention_at": (), "groups": 4, "dropout": 0.0, "middle_attention": False}
SIDE = 8


def recipe(dropout=0.0, **settings):
    return Sr3(Sr3Config(network={**NETWORK, "dropout": dropout}, **{"sampling_steps": 4, **settings}))


def batch(n=4, seed=0):
    high, error = jax.random.normal(jax.random.key(seed), (2, n, SIDE, SIDE, 1))
    return Batch(high=jnp.tanh(high), low=jnp.tanh(high) + 0.1 * error)


def keys_of(n, seed=7):
    return jax.random.split(jax.random.key(seed), n)


def weights(method, scale=0.3):
    """Random weights without compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(method.init, jax.random.key(0), batch()))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * scale, jnp.float32), shapes)


def let_it_know(method, high):
    """Replaces the network by one that solves Eq. 4 for the noise, given what is really diffused."""

    class Oracle:
        @staticmethod
        def apply(variables, x_t, low, signal, **_):
            x0 = method.pixels.diffused(high, low)
            signal = signal[:, None, None, None]
            sigma = jnp.sqrt(1 - signal**2)
            return target(method.config.prediction, x0, (x_t - signal * x0) / sigma, Level(signal[:, 0, 0, 0], sigma[:, 0, 0, 0], signal))

    method.network = Oracle()
    return {"params": {}, "stats": {}}


COARSE = {"kind": "linear", "steps": 100, "beta_start": 1e-3, "beta_end": 0.1, "reference_steps": 100}  # far from where float32 hurts


@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("residual_std", [None, 0.1])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_whoever_knows_the_noise_has_no_loss(prediction, residual_std, loss):
    """SR3, Eqs. 6–7: what is asked for is the noise (or x_0, or v) of the very x_t that the network is shown."""
    method = recipe(prediction=prediction, residual_std=residual_std, loss=loss, schedule=COARSE)
    variables = let_it_know(method, batch().high)
    assert float(method.loss(variables, batch(), keys_of(4), jnp.int32(0)).loss) < 1e-3


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("residual_std", [None, 0.1])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_perfect_denoiser_gives_the_target(prediction, residual_std, eta):
    """SR3, Eqs. 8–11, whatever the noise it starts from; nothing is counted as clipped."""
    method = recipe(prediction=prediction, residual_std=residual_std, schedule=COARSE)
    variables = let_it_know(method, batch().high)
    output = method.upscale(variables, batch().condition, keys_of(4), Request(steps=4, eta=eta))
    np.testing.assert_allclose(output.image, batch().high, atol=2e-4)
    assert not output.metrics["clipped"].any()


def test_without_a_residual_nothing_but_the_target_is_diffused():
    method = recipe()
    np.testing.assert_array_equal(method.pixels.diffused(batch().high, batch().low), batch().high)


def test_the_residual_is_undone_exactly_where_it_was_made():
    method = recipe(residual_std=0.1)
    back = method.pixels.image(method.pixels.diffused(batch().high, batch().low), batch().low)
    np.testing.assert_allclose(back, batch().high, atol=1e-6)


@pytest.mark.parametrize("residual_std", [None, 0.1])
def test_the_image_stays_within_the_bound_and_what_is_clipped_is_counted(residual_std):
    """Algorithm 2 with x̂_0 kept in range: an oracle whose truth lies outside is held at the bound."""
    method = recipe(prediction="x0", bound=0.5, residual_std=residual_std)
    low = jnp.clip(batch().low, -0.4, 0.4)
    high = jnp.where(batch().high > 0, 2.0, 0.1)
    variables = let_it_know(method, high)
    output = method.upscale(variables, Condition(low), keys_of(4), Request(steps=4))
    np.testing.assert_allclose(output.image, jnp.minimum(high, 0.5), atol=1e-5)
    np.testing.assert_allclose(output.metrics["clipped"], (high > 1).mean((1, 2, 3)), atol=1e-6)


def test_with_a_residual_the_bound_gives_way_to_a_condition_beyond_it():
    method = recipe(prediction="x0", bound=0.5, residual_std=0.1)
    low = jnp.full((1, SIDE, SIDE, 1), 0.9)
    output = method.upscale(let_it_know(method, low), Condition(low), keys_of(1), Request(steps=2))
    np.testing.assert_allclose(output.image, low, atol=1e-6)


def test_the_noise_level_is_uniform_between_neighbours_of_a_uniform_t():
    """SR3, Alg. 1 and WaveGrad: the network's √ᾱ has, over many slices, the distribution of the schedule's mixture of intervals."""
    method = recipe(schedule=COARSE)
    seen = []

    class Listener:
        @staticmethod
        def apply(variables, x_t, low, signal, **_):
            seen.append(signal)
            return x_t

    method.network = Listener()
    many = Batch(high=jnp.zeros((4000, 1, 1, 1)), low=jnp.zeros((4000, 1, 1, 1)))
    method.loss({"params": {}, "stats": {}}, many, keys_of(4000), jnp.int32(0))
    edges = np.append(1.0, np.asarray(method.schedule.signal))[::-1]  # √ᾱ_T … √ᾱ_0
    place = np.interp(np.sort(np.asarray(seen[0])), edges, np.linspace(0, 1, len(edges)))  # uniform in 0…1 if the law holds
    assert np.abs(place - (np.arange(4000) + 0.5) / 4000).max() < 1.63 / np.sqrt(4000)  # Kolmogorov–Smirnov, 1 %


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_loss_of_a_batch_is_the_mean_of_its_slices_losses(dropout):
    """Each slice has its own key, for dropout too: accumulation over parts of a batch is the batch."""
    method, all_of, keys = recipe(dropout), batch(), keys_of(4)
    variables = weights(method)
    loss = jax.jit(lambda b, k: method.loss(variables, b, k, jnp.int32(0)).loss)
    alone = [loss(jax.tree.map(lambda x, i=i: x[i : i + 1], all_of), keys[i : i + 1]) for i in range(4)]
    np.testing.assert_allclose(loss(all_of, keys), np.mean(alone), rtol=1e-5)


def test_dropout_changes_the_loss_and_not_the_upscaled_image():
    with_, without = recipe(0.5), recipe()
    variables = weights(with_)
    losses = [float(m.loss(variables, batch(), keys_of(4), jnp.int32(0)).loss) for m in (with_, without)]
    assert losses[0] != losses[1]
    images = [m.upscale(variables, batch().condition, keys_of(4), Request(steps=1)).image for m in (with_, without)]
    np.testing.assert_array_equal(*images)


def test_a_slice_is_upscaled_alike_in_whatever_company():
    method, condition, keys = recipe(residual_std=0.1, prediction="v"), batch().condition, keys_of(4)
    variables = weights(method)
    upscale = jax.jit(lambda low, k: method.upscale(variables, Condition(low), k, Request(steps=3, eta=1.0)).image)
    together = upscale(condition.low, keys)
    turned = upscale(condition.low[::-1], keys[::-1])
    np.testing.assert_allclose(turned[::-1], together, atol=1e-5)
    np.testing.assert_allclose(upscale(condition.low[1:2], keys[1:2]), together[1:2], atol=1e-5)
    assert not np.allclose(upscale(condition.low, keys_of(4, seed=8)), together, atol=1e-3)


def test_a_small_network_overfits_one_batch():
    method = recipe(residual_std=0.1, prediction="v", loss="l2")
    variables = weights(method, 0.1)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, opt, i):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_of(4), i)
        loss, grads = jax.value_and_grad(lambda p: method.loss({"params": p, "stats": {}}, batch(), keys, i).loss)(params)
        updates, opt = optimizer.update(grads, opt)
        return optax.apply_updates(params, updates), opt, loss

    params, opt = variables["params"], optimizer.init(variables["params"])
    losses = []
    for i in range(60):
        params, opt, loss = step(params, opt, i)
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


@pytest.mark.parametrize("wrong, message", [
    ({"bound": 0.0}, "bound"),
    ({"residual_std": -1.0}, "residual_std"),
    ({"sampling_steps": 2001}, "2001"),
    ({"eta": 1.5}, "1.5"),
    ({"schedule": {"zero_terminal_snr": True}}, "zero_terminal_snr"),
    ({"network": {"width": 60}}, "width 60 and groups 32"),
    ({"network": {"attention_at": [3]}}, "attention_at names levels"),
    ({"network": {"dropout": 1.0}}, "dropout"),
])  # fmt: skip
def test_wrong_settings_are_refused_by_name(wrong, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(wrong, Sr3Config)


# ------------------------------------------------------------------------------------------------ slabs, and one step


def slab(n=4, context=2):
    return batch(n)._replace(beside=jax.random.normal(jax.random.key(5), (n, SIDE, SIDE, 2 * context)))


def test_with_context_the_network_sees_the_slices_beside_its_own():
    method = recipe(prediction="x0", context=2)
    variables = weights(method)
    one, request = slab(), Request(steps=1)
    seen = method.upscale(variables, one.condition, keys_of(4), request).image
    other = method.upscale(variables, one._replace(beside=one.beside.at[..., 3].add(0.5)).condition, keys_of(4), request).image
    assert np.abs(seen - other).max() > 1e-3
    stem = nn.meta.unbox(jax.eval_shape(method.init, jax.random.key(0), one))["params"]["stem"]["kernel"]
    assert stem.shape[2] == 6  # x_t, the slice, and four beside it


# ------------------------------------------------------------------------------------------------ how coarse the scan was


def scaled(*scale, n=4):
    return batch(n)._replace(scale=jnp.tile(jnp.array(scale), (n, 1)))


def test_a_network_that_is_told_the_scale_starts_as_if_it_was_not():
    """Nothing that it is told changes its output, and its other parameters are those of one that is not told."""
    untold, told = recipe(prediction="x0"), recipe(prediction="x0", scale_conditioning=True)
    params = weights(untold)["params"]
    shapes = nn.meta.unbox(jax.eval_shape(told.init, jax.random.key(0), batch()))["params"]
    blocks = [name for name in params if "conv1" in params[name]]
    assert shapes.keys() - params.keys() == {"scale_in", "scale_out", *(f"scale_{name}" for name in blocks)}
    started = nn.meta.unbox(told.init(jax.random.key(0), batch()))["params"] | params
    expected = untold.upscale({"params": params}, batch().condition, keys_of(4), Request(steps=1)).image
    for scale in ((1.0, 1.0, 1.0), (2.0, 1.0, 5.0)):
        found = told.upscale({"params": started}, scaled(*scale).condition, keys_of(4), Request(steps=1)).image
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_what_it_is_told_counts_along_each_axis_in_upscaling_and_in_training(axis, dropout):
    method = recipe(prediction="x0", scale_conditioning=True, dropout=dropout)
    variables = {"params": weights(method)["params"], "stats": {}}
    one, other = scaled(2.0, 2.0, 2.0), scaled(*(3.0 if a == axis else 2.0 for a in range(3)))
    images = [method.upscale(variables, of.condition, keys_of(4), Request(steps=1)).image for of in (one, other)]
    assert np.abs(images[0] - images[1]).max() > 1e-3
    losses = [float(method.loss(variables, of, keys_of(4), jnp.float32(0)).loss) for of in (one, other)]
    assert abs(losses[0] - losses[1]) > 1e-5 * losses[0]


QUALITY = {"prediction": "x0", "scale_conditioning": True, "quality_conditioning": True}


def test_it_is_told_the_quality_beside_the_scale_in_units_of_a_typical_one():
    method = recipe(**QUALITY)
    of = scaled(2.0, 1.0, 5.0).condition._replace(quality=jnp.tile(jnp.array([0.8, 1.6, 2.4, 0.07, 2.0]), (4, 1)))
    np.testing.assert_allclose(method._told(of), [[2, 1, 5, 0.5, 1, 1.5, 2, 2]] * 4, rtol=1e-6)
    assert recipe(prediction="x0")._told(of) is None


@pytest.mark.parametrize("which", range(5))
def test_what_it_is_told_of_the_quality_counts_in_upscaling_and_in_training(which):
    method = recipe(**QUALITY)
    variables = {"params": weights(method)["params"], "stats": {}}
    one, other = (scaled(2.0, 2.0, 2.0)._replace(quality=jnp.full((4, 5), 0.1).at[:, which].set(value)) for value in (0.1, 0.3))
    images = [method.upscale(variables, of.condition, keys_of(4), Request(steps=1)).image for of in (one, other)]
    assert np.abs(images[0] - images[1]).max() > 1e-3
    losses = [float(method.loss(variables, of, keys_of(4), jnp.float32(0)).loss) for of in (one, other)]
    assert abs(losses[0] - losses[1]) > 1e-5 * losses[0]


@pytest.mark.parametrize("terminal", [0.0, 0.5, 1.0])
def test_so_many_slices_are_trained_where_one_step_starts(terminal):
    method = recipe(terminal=terminal)
    times, _ = np.asarray(method._times(jax.random.split(jax.random.key(0), 4000), SIDE))
    assert times.min() >= 1
    np.testing.assert_allclose((times == method.schedule.steps).mean(), terminal, atol=0.03)


@pytest.mark.parametrize(
    "settings, message", [({"pixels": [1.2, 0.7]}, "finest and the coarsest"), ({"sharp_steps": 5000}, "sharp_steps must be")]
)
def test_pixels_and_modes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        from_dict({"kind": "sr3", **settings}, Sr3Config)


# ------------------------------------------------------------------------------------------------ what small residuals are learnt with


def test_shrunk_the_network_sees_what_x_t_says_of_x_0_by_itself():
    """E(x_0 | x_t) = √ᾱ x_t where x_0 has unit variance: the slope of the regression of x_0 on x_t. From pure noise that is nothing."""
    method = recipe(prediction="x0", shrink=True, schedule=COARSE)
    seen = []

    class Looks:
        @staticmethod
        def apply(variables, x_t, low, signal, **_):
            seen.append((x_t, signal))
            return x_t

    method.network = Looks()
    x0, noise = jax.random.normal(jax.random.key(0), (2, 1, 200, 200, 1))
    for signal in (0.9, 0.5, 0.01):
        level = Level(jnp.array([signal]), jnp.sqrt(1 - jnp.array([signal]) ** 2), jnp.array([signal]))
        x_t = signal * x0 + np.sqrt(1 - signal**2) * noise
        method._denoise({"params": {}}, x0, None, x_t, level)
        slope = float((x0 * x_t).mean() / (x_t**2).mean())
        np.testing.assert_allclose(seen[-1][0], signal * x_t, rtol=1e-6)
        assert abs(slope - signal) < 0.02


def test_relative_errors_are_shares_of_what_a_slice_lacks():
    """Twice the residual, and a network that misses twice as much: the same loss, but for what `EASY` adds."""
    method = recipe(prediction="x0", residual_std=0.1, loss="l2", relative=True, shrink=True)
    method.network = type("Half", (), {"apply": staticmethod(lambda variables, x_t, low, signal, **_: jnp.zeros_like(x_t))})()
    one = batch()
    twice = one._replace(high=one.low + 2 * (one.high - one.low))
    losses = [float(method.loss({"params": {}, "stats": {}}, of, keys_of(4), jnp.int32(0)).loss) for of in (one, twice)]
    powers = [np.square((of.high - of.low) / 0.1).mean((1, 2, 3)) for of in (one, twice)]
    np.testing.assert_allclose(losses, [(power / (power + EASY)).mean() for power in powers], rtol=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_relative_to_the_head_the_squares_of_its_slices_count_as_they_are():
    method = recipe(prediction="x0", residual_std=0.1, loss="l2", relative=True, relative_to="head")
    method.network = type("Nothing", (), {"apply": staticmethod(lambda variables, x_t, low, signal, **_: jnp.zeros_like(x_t))})()
    of, lacks = batch(), 0.02 * jnp.arange(1.0, 1 + batch().size)
    loss = method.loss({"params": {}, "stats": {}}, of._replace(lacks=lacks), keys_of(of.size), jnp.int32(0)).loss
    powers = np.square((of.high - of.low) / 0.1).mean((1, 2, 3))
    assert float(loss) == pytest.approx(float((powers / (np.square(lacks / 0.1) + EASY)).mean()), rel=1e-5)


@pytest.mark.parametrize("settings", [{"loss": "l2"}, {"residual_std": 0.1}])
def test_relative_is_of_squares_of_a_residual_alone(settings):
    with pytest.raises(ConfigError, match="relative is of the squares of a residual"):
        from_dict({"kind": "sr3", "relative": True, **settings}, Sr3Config)


def test_nothing_is_relative_to_a_head_where_nothing_is_relative():
    with pytest.raises(ConfigError, match="relative_to says of what the loss is a share: set relative=true"):
        from_dict({"kind": "sr3", "relative_to": "head"}, Sr3Config)


def test_attention_without_norms_is_refused():
    with pytest.raises(ConfigError, match="attention normalises what it sees"):
        from_dict({"kind": "sr3", "network": {"groups": None}}, Sr3Config)


def test_without_norms_a_block_starts_as_its_skip():
    block = ResnetBlock(8, groups=None)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 8))
    variables = block.init(jax.random.key(1), x, jnp.ones((2, 4)))
    np.testing.assert_array_equal(block.apply(variables, x, jnp.ones((2, 4))), x)
    assert set(nn.meta.unbox(variables)["params"]) == {"conv1", "embedding", "conv2"}
    gradient = jax.grad(lambda v: (block.apply(v, x, jnp.ones((2, 4))) ** 2).sum())(variables)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(nn.meta.unbox(gradient)["params"]["conv2"]))


def cubes(seed=0, count=2):
    """A batch of cubes of one voxel's noise each: views agree on what is true and what is seen."""
    rng, slices = np.random.default_rng(seed), []
    for _ in range(count):
        high = np.tanh(rng.normal(size=(SIDE, SIDE, SIDE, 1)))
        both = np.stack([high, high + 0.1 * rng.normal(size=high.shape)])
        slices += [np.moveaxis(both, 1 + axis, 1) for axis in range(3)]
    high, low = np.concatenate(slices, axis=1).astype(np.float32)
    return Batch(high=jnp.asarray(high), low=jnp.asarray(low))


FUSED = {"prediction": "x0", "loss": "l2", "residual_std": 0.1, "terminal": 1.0}


def test_of_cubes_the_mean_over_three_axes_is_compared_as_upscale_makes_it():
    """The closed form, from what one sampling step makes of the same slices and the same noise."""
    method, of = recipe(**FUSED, fused=True), cubes()
    variables, keys = weights(method), keys_of(of.size)
    seen = {}

    def record(self, variables, shown, scale, x_t, level, dropout=None):
        seen["output"] = Sr3._denoise(self, variables, shown, scale, x_t, level, dropout)
        return seen["output"]

    method._denoise = record.__get__(method)
    loss = method.loss(variables, of, keys, 0.0).loss
    views = np.asarray(method.pixels.image(seen["output"], of.low)).reshape(2, 3, SIDE, SIDE, SIDE)
    truths = np.asarray(of.high).reshape(2, 3, SIDE, SIDE, SIDE)[:, 0]
    means = np.mean([np.moveaxis(views[:, axis], 1, 1 + axis) for axis in range(3)], axis=0)
    assert np.allclose(loss, np.mean((means - truths) ** 2) / 0.1**2, rtol=1e-4)


def test_a_mean_misses_no_more_than_its_parts_and_they_learn_from_each_other():
    """Jensen's inequality; and slices across one axis have a gradient where they are right, if those across another are not."""
    of, (alone, fused) = cubes(), (recipe(**FUSED), recipe(**FUSED, fused=True))
    variables, keys = weights(alone), keys_of(of.size)
    losses = [float(method.loss(variables, of, keys, 0.0).loss) for method in (fused, alone)]
    assert 0 < losses[0] < 0.9 * losses[1]

    def missed(outputs):
        fused._denoise = lambda *_, **__: outputs
        return fused.loss({"stats": {}}, of, keys, 0.0).loss

    right = fused.pixels.diffused(of.high, of.low)
    gradient = jax.grad(missed)(right.at[: 2 * SIDE].add(1.0))  # of the first cube two axes say 1 too much
    assert (gradient[2 * SIDE : 3 * SIDE] > 0).all()
    assert not gradient[3 * SIDE :].any()
    assert np.allclose(missed(right.at[2 * SIDE : 3 * SIDE].add(-2.0).at[: 2 * SIDE].add(1.0)), 0, atol=1e-10)


def test_cubes_that_are_seen_at_another_t_are_compared_slice_by_slice():
    """From there sampling goes on along each axis by itself. All slices of a cube are seen so, or none."""
    of, settings = cubes(count=6), {**FUSED, "terminal": 0.5}
    method = recipe(**settings, fused=True)
    last = np.asarray(method._times(keys_of(of.size), SIDE)[1]).reshape(6, 3 * SIDE)
    assert (last == last[:, :1]).all()
    assert 0 < last[:, 0].sum() < 6
    never, alone = recipe(**{**FUSED, "terminal": 1e-9}, fused=True), recipe(**{**FUSED, "terminal": 1e-9})
    variables = weights(alone)
    assert np.allclose(*(method.loss(variables, of, keys_of(of.size), 0.0).loss for method in (never, alone)))


# ------------------------------------------------------------------------------------------------ passes, and how many axes serve

TWICE = {**FUSED, "fused": True, "passes": 2, "context": 1}


def stacked(count=2, axes=None):
    """Cubes with the slices beside each, and with a scale and how many axes serve if they are said."""
    of = cubes(count=count)
    beyond = 0.3 * jax.random.normal(jax.random.key(9), (of.size, SIDE, SIDE, 2))  # what the volume has beside the cube
    inside = slabs(of.low, [-1, 1])[..., 1:]
    first, last = (jnp.arange(of.size) % SIDE == at for at in (0, SIDE - 1))
    outermost = jnp.stack([first, last], -1)[:, None, None]
    of = of._replace(beside=jnp.where(outermost, beyond, inside))
    return of if axes is None else of._replace(scale=jnp.full((of.size, 3), 2.0), axes=jnp.repeat(jnp.array(axes), 3 * SIDE))


def volume_of(of):
    """The volume as the network is shown it."""
    return jnp.concatenate([of.low, of.beside], axis=-1)


def test_the_second_pass_is_shown_what_the_first_made_and_learns_from_that_alone():
    """The loss from an estimate that `upscale` made before, held as it is; the gradient too: none goes through the first pass. Beyond its
    cube nothing is made: the residual of the outermost slice stands there, whatever the volume is."""
    method, of = recipe(**TWICE, first_pass=0.0), stacked()
    variables, keys = weights(method), keys_of(of.size)
    condition, noise = of.condition, jax.vmap(jax.random.fold_in, (0, None))(keys, 2)
    image = method.upscale(variables, condition._replace(estimate=volume_of(of)), noise, Request(steps=1)).image
    residual = slabs((over_axes(image) - of.low) / 0.1, [-1, 1])
    between = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)

    def by_hand(params):
        shown = jnp.concatenate([volume_of(of), residual], axis=-1)
        level = continuous_level(method.schedule, jnp.full(of.size, method.schedule.steps), jax.vmap(jax.random.uniform)(between))
        x0 = (of.high - of.low) / 0.1
        output = method._denoise({"params": params}, shown, None, add_noise(x0, draw_noise(noise, 0, x0.shape[1:]), level), level)
        return jnp.mean(over_axes(output - x0) ** 2)

    expected = jax.value_and_grad(by_hand)(variables["params"])
    found = jax.value_and_grad(lambda params: method.loss({"params": params, "stats": {}}, of, keys, 0.0).loss)(variables["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), found, expected)


def test_a_share_of_cubes_is_trained_on_the_first_pass():
    """Their estimate is the volume, as that of all in the first pass of `upscale`; of a cube all slices or none."""
    of = stacked(count=8)
    method, keys = recipe(**TWICE, first_pass=0.5), keys_of(of.size, seed=8)
    estimate = np.asarray(method._estimate(weights(method), of.condition, keys, keys)).reshape(8, 3 * SIDE, -1)
    volume = np.asarray(volume_of(of)).reshape(8, 3 * SIDE, -1)
    begins = (estimate == volume).all(-1)
    assert (begins == begins[:, :1]).all()
    assert 0 < begins[:, 0].sum() < 8


def test_the_estimate_counts_in_upscaling_and_what_it_is_beside_too():
    method, of = recipe(**TWICE), stacked()
    variables, volume = weights(method), volume_of(of)
    of_volume = method.upscale(variables, of.condition._replace(estimate=volume), keys_of(of.size), Request(steps=1)).image
    for channel in range(3):
        changed = of.condition._replace(estimate=volume.at[..., channel].add(0.1))
        assert np.abs(method.upscale(variables, changed, keys_of(of.size), Request(steps=1)).image - of_volume).max() > 1e-3


AXES = {**FUSED, "fused": True, "scale_conditioning": True, "axes_conditioning": True, "context": 1}


def test_it_is_told_over_how_many_axes_the_mean_is_and_compared_so():
    method, of = recipe(**AXES), stacked(axes=[3.0, 1.0])
    variables, keys = weights(method), keys_of(of.size)
    seen = {}

    def record(self, variables, shown, told, x_t, level, dropout=None):
        seen["told"], seen["output"] = told, Sr3._denoise(self, variables, shown, told, x_t, level, dropout)
        return seen["output"]

    method._denoise = record.__get__(method)
    loss = method.loss(variables, of, keys, 0.0).loss
    x0 = method.pixels.diffused(of.high, of.low)
    of_three = over_axes((seen["output"] - x0)[: 3 * SIDE])
    alone = (seen["output"] - x0)[3 * SIDE :]
    np.testing.assert_allclose(loss, (jnp.mean(of_three**2) + jnp.mean(alone**2)) / 2, rtol=1e-5)
    np.testing.assert_array_equal(seen["told"], [[2, 2, 2, 1]] * 3 * SIDE + [[2, 2, 2, 3]] * 3 * SIDE)
    method = recipe(**AXES)
    images = [
        method.upscale(variables, of.condition._replace(axes=jnp.full(of.size, n)), keys, Request(steps=1)).image for n in (1.0, 2.0, 3.0)
    ]
    assert min(np.abs(one - other).max() for one, other in itertools.pairwise(images)) > 1e-3


def test_shares_of_cubes_are_trained_for_one_axis_and_for_two_and_stacks_always_for_one():
    method = recipe(**AXES, single_axis=0.4)
    of = stacked(count=1)._replace(axes=jnp.full(3 * SIDE, 3.0))
    many = Batch(high=None, low=jnp.zeros((400 * 3 * SIDE, SIDE, SIDE, 1)), axes=jnp.full(400 * 3 * SIDE, 3.0))
    found = np.asarray(method._axes(keys_of(many.low.shape[0]), many)).reshape(400, 3 * SIDE)
    assert (found[:, : 2 * SIDE] == found[:, :1]).all()
    assert (found[:, 2 * SIDE :] == np.where(found[:, :1] == 2, 1, found[:, :1])).all()  # the third has no part in a mean over two
    np.testing.assert_allclose([(found[:, 0] == n).mean() for n in (1, 2, 3)], [0.4, 0.2, 0.4], atol=0.08)
    assert (np.asarray(method._axes(keys_of(3 * SIDE), of._replace(axes=jnp.ones(3 * SIDE)))) == 1).all()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"train": {"batch_size": 16}}, "batch_size must be a multiple of 24 slices to a cube"),
        ({"train": {"batch_size": 48, "accumulate": 2}}, "accumulate 1; got 48, 2"),
        ({"data": {"draws": 100}}, r"data\.draws must be a multiple of 96: data\.window times 24 slices"),
        ({"data": {"augment": {"rotation": 5, "elastic": 1}}}, "set rotation and elastic to 0"),
        ({"data": {"maps": ["labels"]}}, r"data\.maps: cubes have none"),
        ({"method": {"terminal": 0.0}}, "give a share of that, terminal, above 0"),
        ({"method": {"fused": False, "passes": 2, "residual_std": 0.1}}, "of the mean over three axes: set fused=true"),
        ({"method": {"fused": False, "axes_conditioning": True}}, "of the mean over three axes: set fused=true"),
        ({"method": {"passes": 2}}, "give residual_std, or passes 1"),
        (
            {"method": {"axes_conditioning": True}},
            "axes_conditioning is told beside the scale: set scale_conditioning=true, or leave it out",
        ),
        ({"method": {"quality_conditioning": True}}, "quality_conditioning is told beside the scale: set scale_conditioning=true"),
        ({"method": {"single_axis": 0.2}}, "set axes_conditioning=true, or single_axis 0"),
    ],
)
def test_what_would_be_no_whole_cubes_is_refused_with_the_config(changed, message):
    whole = {"method": {"kind": "sr3", "network": NETWORK, "fused": True, "terminal": 1.0}, "data": {"crop": 8, "draws": 192}}
    whole["train"] = {"batch_size": 24}
    assert from_dict(whole, Experiment).method.fused
    with pytest.raises(ConfigError, match=message):
        from_dict({part: {**whole[part], **changed.get(part, {})} for part in whole}, Experiment)
