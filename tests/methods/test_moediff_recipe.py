"""Laws of the mixture's recipe [MoEDiff-SR §II]."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.config import ConfigError, from_dict
from jaxsr.diffusion.schedule import level_at
from jaxsr.experiment import Experiment
from jaxsr.methods import moediff
from jaxsr.methods.base import Mixture, Request
from jaxsr.methods.condition import Batch, Condition
from jaxsr.methods.mixture import mixed
from jaxsr.methods.moediff_config import MoediffConfig
from jaxsr.methods.moediff_levels import draw_levels
from jaxsr.models.perceptual_loss import vgg_shapes

TINY = {
    "kind": "moediff",
    "vqvae": {"network": {"width": 8, "multipliers": [1, 2], "blocks": 1, "embedding": 8, "codes": 16, "groups": 4}},
    "encoder": {"patches": [16, 8, 4], "width": 16, "depth": 2, "heads": 2, "condition": 8},
    "experts": {
        "smooth": {"width": 16, "groups": 4, "schedule": {"steps": 50, "beta_start": 1e-4, "beta_end": 2e-2, "rescale": False}},
        "cortex": {"width": 16, "groups": 4, "schedule": {"steps": 200, "beta_start": 1e-4, "beta_end": 2e-2, "rescale": False}},
        "junction": {"width": 16, "groups": 4, "schedule": {"steps": 100, "beta_start": 1e-4, "beta_end": 2e-2, "rescale": False}},
    },
    "prediction": "v",
    "perceptual": "none",
    "stft_windows": [4, 8],
    "sampling_steps": 2,
}
SIDE, SIZE = 16, 3
LATE = 0.9  # of a run


def config(**changes):
    return MoediffConfig.model_validate({**TINY, **changes})


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def initial():
    """Variables whose last layers answer, which no change below makes others of, and a batch."""
    method = config().build()
    maps = {name: random(SIZE, SIDE, SIDE, 1, seed=seed) for seed, name in enumerate(("high", "low", "bias", "jacobian"))}
    batch = Batch(**maps)
    variables = nn.meta.unbox(jax.jit(method.init)(jax.random.key(0), batch))
    frozen = method.vqvae.init(jax.random.key(1), batch)
    variables = {**variables, "frozen": {"vqvae": nn.meta.unbox({**frozen["params"], **frozen["stats"]})}}
    variables["params"] = jax.tree.map(lambda x: x + 0.1 * random(*x.shape, seed=x.size), variables["params"])
    return variables, batch


@functools.cache
def made(**changes):
    """The recipe, variables and a batch."""
    return config(**changes).build(), *initial()


def keys_of(count=SIZE):
    return jax.random.split(jax.random.key(7), count)


@functools.cache
def step_of(progress=LATE, **changes):
    """The loss and its gradients."""
    _, variables, batch = made(**changes)
    return program_of(**changes)(variables["params"], variables, batch, keys_of(), progress)


@functools.cache
def program_of(**changes):
    def loss(params, variables, *operands):
        output = method.loss({**variables, "params": params}, *operands)
        return output.loss, output

    method, *_ = made(**changes)
    return jax.jit(jax.grad(loss, has_aux=True))


def loss_of(*progress, **changes):
    return step_of(*progress, **changes)[1]


@functools.cache
def image_of(**request):
    method, variables, batch = made()
    upscale = jax.jit(functools.partial(method.upscale, request=Request(2, **request)))
    return upscale(variables, Condition(batch.low), keys_of())


@pytest.mark.parametrize("gate", ["slice", "token"])
def test_the_loss_is_made_of_its_terms_and_every_trained_parameter_learns(gate):
    """Eq. 18, and no network stands idle: the gate too has a gradient, through Eqs. 13 and 16."""
    gradients, out = step_of(**({} if gate == "slice" else {"gate": gate}))
    np.testing.assert_allclose(out.loss, out.metrics["experts"] + out.metrics["gating_weight"] * out.metrics["gating"], rtol=1e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    for name in ("encoder", "gate", "map"):
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients[name])) > 0, name
    for name, expert in gradients["experts"].items():
        assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(expert["head"])), name


def test_the_gate_is_uniform_for_the_first_fifth_of_a_run_and_no_gradient_moves_its_queries_then():
    """§III-C: 1000 of 5000 epochs."""
    method, *_ = made()
    gradients, out = step_of(0.1)
    np.testing.assert_allclose([out.metrics[f"gate_{name}"] for name in method.experts], 1 / 3, rtol=1e-6)
    assert not np.any(gradients["gate"]["queries"])
    assert abs(float(loss_of().metrics["gate_smooth"]) - 1 / 3) > 1e-4


def test_statistics_of_a_batch_are_the_means_of_its_slices_statistics():
    """So neither devices nor accumulated passes change them: usage (c of Eq. 4) and the gating loss's moments (Eq. 17)."""
    method, variables, batch = made()
    alone = [
        jax.jit(method.loss)(variables, jax.tree.map(lambda x, i=i: x[i : i + 1], batch), keys_of()[i : i + 1], LATE).stats
        for i in range(SIZE)
    ]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *alone)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4), loss_of().stats, mean)


def test_the_mixture_is_the_weighed_sum_of_what_experts_make_alone():
    """Eq. 9: chains are independent, latents are weighed and only then decoded."""
    method, variables, batch = made()
    out = image_of()
    chains = []
    decode = method.vqvae.decode
    try:
        method.vqvae.decode = lambda vqvae, z0: (chains.append(z0), decode(vqvae, z0))[1]
        method.upscale(variables, Condition(batch.low), keys_of(), Request(2))
        for expert in range(3):
            method.upscale(variables, Condition(batch.low), keys_of(), Request(2, expert=expert))
    finally:
        del method.vqvae.decode
    mixed, *alone = chains
    weights = [np.asarray(out.metrics[f"Gate{name.capitalize()}"])[:, None, None, None] for name in method.experts]
    np.testing.assert_allclose(mixed, sum(w * z for w, z in zip(weights, alone, strict=True)), rtol=1e-3, atol=1e-4)


def hidden_of(gate, tokens):
    """What queries are compared with [Eq. 2]."""
    hidden = jax.nn.gelu(tokens @ gate["in"]["kernel"] + gate["in"]["bias"], approximate=False)
    return hidden @ gate["out"]["kernel"] + gate["out"]["bias"]


def test_the_best_expert_alone_is_what_top1_gives():
    """Each slice its own: queries lie along what the gate makes of one slice each, so that they go to different experts."""
    method, variables, batch = made()
    assert isinstance(method, Mixture)
    grids = method.encoder.apply({"params": variables["params"]["encoder"]}, batch.low)
    tokens = jnp.concatenate([grid.reshape(SIZE, -1, grid.shape[-1]) for grid in grids], 1)
    seen = hidden_of(variables["params"]["gate"], tokens).mean(1)
    apart = {**variables["params"], "gate": {**variables["params"]["gate"], "queries": seen - seen.mean(0)}}
    variables = {**variables, "params": apart}
    route = np.asarray(method.route(variables, Condition(batch.low)))
    assert len(set(route)) > 1
    upscale = jax.jit(method.upscale, static_argnums=3)
    best = upscale(variables, Condition(batch.low), keys_of(), Request(2, routing="top1")).image
    for i, expert in enumerate(route):
        alone = upscale(variables, Condition(batch.low), keys_of(), Request(2, expert=int(expert))).image
        np.testing.assert_allclose(best[i], alone[i], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", [{"gate": "token"}, {"literal": True}], ids=["token", "literal"])
def test_latents_are_mixed_by_weights_that_sum_to_one(changes):
    """Eq. 9 of a gate of pixels too, pixel by pixel; and weights as printed, which sum to about a third, are brought to one for it."""
    method, variables, batch = made(**changes)
    shown = method._show(variables["params"], batch.low)
    weights = method._weights(shown.gating, variables["stats"]["usage"], (SIDE // 2, SIDE // 2))
    assert weights.shape == ((SIZE, SIDE // 2, SIDE // 2, 3) if "gate" in changes else (SIZE, 3))
    drawn = random(3, SIZE, SIDE // 2, SIDE // 2, 8)
    by_pixel = np.asarray(
        jnp.broadcast_to(weights.reshape(SIZE, *weights.shape[1:-1], *(1,) * (4 - weights.ndim), 3), (SIZE, *drawn.shape[2:4], 3))
    )
    expected = np.einsum("kbhwc,bhwk->bhwc", drawn, by_pixel / by_pixel.sum(-1, keepdims=True))
    np.testing.assert_allclose(mixed(drawn, weights), expected, rtol=1e-4, atol=1e-5)
    constant = jnp.ones_like(drawn)
    np.testing.assert_allclose(mixed(constant, weights), 1, rtol=1e-5)


def test_a_gate_of_pixels_upscales_routes_and_explains():
    method, variables, batch = made(gate="token")
    condition = Condition(batch.low)
    out = jax.jit(method.upscale, static_argnums=3)(variables, condition, keys_of(), Request(1))
    assert np.isfinite(out.image).all()
    found = method.explain(variables, condition)
    np.testing.assert_allclose(found.weights.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(method.route(variables, condition), found.weights.argmax(-1))
    assert found.local.shape == (SIZE, SIDE, SIDE, 3)
    np.testing.assert_allclose(found.local.mean((1, 2)), found.weights, atol=2e-2)


def test_the_weight_of_the_gating_loss_is_one_over_its_variance_below_the_ceiling():
    """Eq. 17, of the statistics from before the batch."""
    method, variables, batch = made(gating_ceiling=10.0)
    stats = {**variables["stats"], "gating": {"mean": jnp.float32(0.5), "square": jnp.float32(0.75)}}
    metrics = jax.jit(method.loss)({**variables, "stats": stats}, batch, keys_of(), LATE).metrics
    np.testing.assert_allclose(metrics["gating_weight"], 2.0, rtol=1e-6)


def test_experts_are_driven_apart_by_how_much_signal_the_loudest_has(monkeypatch):
    """10-teacher: every loss on ẑ_0 has w' = min(1, SNR); the second term of Eq. 16, which compares experts, the least of theirs."""
    found = []
    for weighted in ("snr", "none"):
        method, variables, batch = made(x0_loss_weight=weighted)
        drawn = draw_levels(method.schedules, keys_of(), (SIDE // 2, SIDE // 2, 8), method.config.levels)
        loud = {
            "cortex": level_at(method.schedules["cortex"], jnp.full(SIZE, 180)),
            "smooth": level_at(method.schedules["smooth"], jnp.full(SIZE, 9)),
        }
        drawn = drawn._replace(levels={name: loud.get(name, loud["smooth"]) for name in drawn.levels})
        monkeypatch.setattr(moediff, "draw_levels", lambda *operands, drawn=drawn: drawn)
        found.append(method.loss(variables, batch, keys_of(), LATE).metrics["diversity"])
    snr = float(method.schedules["cortex"].snr[179])
    assert snr < 0.5
    np.testing.assert_allclose(found[0], snr * found[1], rtol=1e-4)


@pytest.mark.parametrize("changes, said", [
    ({"stft_windows": []}, "stft_windows are even"),
    ({"stft_windows": [5]}, "stft_windows are even"),
    ({"prediction": "eps", "vqvae": {"network": {**TINY["vqvae"]["network"], "embedding": 32}}}, "cannot answer the noise"),
])  # fmt: skip
def test_what_could_not_be_computed_is_refused_at_once(changes, said):
    with pytest.raises(ValueError, match=said):
        config(**changes)


@pytest.mark.parametrize("changes, said", [
    ({"data": {"crop": 16}, "method": {**TINY, "stft_windows": [16]}}, "data.crop must be at least 32"),
    ({"mesh": {"expert": 2}}, "mesh.expert must be 1, or 3"),
    ({"method": {"kind": "vqvae"}, "train": {"accumulate": 2, "batch_size": 2}}, "train.accumulate and method.restart"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused_at_once(changes, said):
    data = {"crop": 16, "maps": ["bias", "jacobian"]}
    with pytest.raises(ConfigError, match=said):
        from_dict({"method": TINY, **changes, "data": {**data, **changes.get("data", {})}}, Experiment)


def test_a_slice_does_not_depend_on_its_batch():
    method, variables, batch = made()
    one = method.upscale(variables, Condition(batch.low[1:2]), keys_of()[1:2], Request(2)).image
    np.testing.assert_allclose(one[0], image_of().image[1], rtol=1e-3, atol=1e-4)


def test_explanations_are_weights_that_sum_to_one_and_attention_of_mean_one():
    """Eqs. 2 and 4."""
    method, variables, batch = made()
    found = method.explain(variables, Condition(batch.low))
    np.testing.assert_allclose(found.weights.sum(-1), 1, rtol=1e-5)
    assert found.attention.shape == (SIZE, SIDE, SIDE, 3)
    np.testing.assert_allclose(found.attention.mean((1, 2)), 1, rtol=1e-4)


def test_each_expert_draws_its_own_noise_and_steps_as_published():
    method = config().build()
    drawn = draw_levels(method.schedules, keys_of(64), (4, 4, 2), method.config.levels)
    assert len({np.asarray(noise).tobytes() for noise in drawn.noises.values()}) == 3
    assert len({np.asarray(level.time / level.time.max()).tobytes() for level in drawn.levels.values()}) == 3
    np.testing.assert_array_equal(drawn.comparable, 1)


def test_matched_levels_are_one_level_and_one_noise_and_still_all_of_every_schedule():
    """Eq. 14 compares experts then, not noise: steps of a schedule lie within one of its own steps of what the others have."""
    method = config(levels="matched").build()
    count = 4096
    drawn = draw_levels(method.schedules, keys_of(count), (1, 1, 1), method.config.levels)
    same = np.asarray(drawn.comparable) == 1
    assert 0.5 < same.mean() < 1
    logs = {name: np.asarray(2 * jnp.log(level.signal)) for name, level in drawn.levels.items()}
    for name, schedule in method.schedules.items():
        gap = np.abs(np.diff(np.asarray(schedule.log_alpha_bar))).max()
        for other in logs:
            widest = max(gap, np.abs(np.diff(np.asarray(method.schedules[other].log_alpha_bar))).max())
            assert np.abs(logs[name] - logs[other])[same].max() <= widest
        times = np.asarray(drawn.levels[name].time)
        assert len(np.unique(times)) == schedule.steps
    last = min(float(schedule.log_alpha_bar[-1]) for schedule in method.schedules.values())
    assert min(log.min() for log in logs.values()) == pytest.approx(last, rel=1e-4)
    first, *others = (np.asarray(noise) for noise in drawn.noises.values())
    assert all((noise == first).all() for noise in others)


def test_slices_whose_levels_no_schedule_shares_supervise_no_gate(monkeypatch):
    """What is left of Eq. 16 of such is its second term."""
    method, variables, batch = made(levels="matched")
    drawn = draw_levels(method.schedules, keys_of(), (SIDE // 2, SIDE // 2, 8), method.config.levels)
    monkeypatch.setattr(moediff, "draw_levels", lambda *operands: drawn._replace(comparable=jnp.zeros(SIZE)))
    metrics = jax.jit(method.loss)(variables, batch, keys_of(), LATE).metrics
    np.testing.assert_allclose(metrics["gating"], metrics["diversity"], rtol=1e-6)
    assert metrics["supervised"] == 0


def test_published_schedules_leave_what_their_lengths_say():
    """ᾱ_T = 6e-3, 2e-9 and 4e-5 for T = 500, 2000 and 1000 [ruling]."""
    schedules = MoediffConfig(perceptual="none").build().schedules
    ends = {name: float(np.exp(schedule.log_alpha_bar[-1])) for name, schedule in schedules.items()}
    assert {name: schedule.steps for name, schedule in schedules.items()} == {"smooth": 500, "cortex": 2000, "junction": 1000}
    np.testing.assert_allclose([ends["smooth"], ends["cortex"], ends["junction"]], [6e-3, 2e-9, 4e-5], rtol=0.2)


def test_the_published_second_phase_has_the_size_of_the_paper():
    """133.02 M parameters and 62.69 M in the heaviest expert, to 10 %: the paper gives no widths."""
    method = MoediffConfig(perceptual="none").build()
    image = jax.ShapeDtypeStruct((1, 256, 256, 1), jnp.float32)
    params = nn.meta.unbox(jax.eval_shape(method.init, jax.random.key(0), Batch(image, image)))["params"]
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert count(params) == 141_885_028
    assert max(count(expert) for expert in params["experts"].values()) == 57_311_744
    assert abs(count(params) / 133.02e6 - 1) < 0.1
    assert abs(57_311_744 / 62.69e6 - 1) < 0.1


@pytest.mark.parametrize("perceptual", ["vgg_latent", "vgg_image"])
def test_the_perceptual_term_is_added_to_the_first_expert_s_task_and_no_other_s(perceptual):
    """Eq. 10; of the decoded slice it reaches the expert through the choice of codes, by the straight way."""
    _, variables, batch = made()
    seeing = config(perceptual=perceptual, x0_loss_weight="none").build()
    blind = config(x0_loss_weight="none").build()
    features = jax.tree.map(lambda leaf: 0.1 * random(*leaf.shape, seed=leaf.size), nn.meta.unbox(vgg_shapes()))
    given = {**variables, "frozen": {**variables["frozen"], "perceptual": features}}
    assert set(seeing.frozen(batch)) == {"vqvae", "perceptual"}
    assert set(seeing.frozen()) == {"vqvae"}  # which upscaling needs
    with_it, without = (jax.jit(m.loss)(v, batch, keys_of(), LATE).metrics for m, v in ((seeing, given), (blind, variables)))
    assert with_it["task_smooth"] > without["task_smooth"]
    for name in ("cortex", "junction"):
        np.testing.assert_allclose(with_it[f"task_{name}"], without[f"task_{name}"], rtol=1e-5)

    def term(head):
        experts = variables["params"]["experts"]
        params = {**variables["params"], "experts": {**experts, "smooth": {**experts["smooth"], "head": head}}}
        return seeing.loss({**given, "params": params}, batch, keys_of(), LATE).metrics["task_smooth"]

    gradient = jax.jit(jax.grad(term))(variables["params"]["experts"]["smooth"]["head"])
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_weights_that_no_loss_would_use_are_refused():
    with pytest.raises(ConfigError, match=r"weights\.perceptual"):
        from_dict({"method": {**TINY, "weights": {"perceptual": "vgg.safetensors"}}, "data": {"maps": ["bias", "jacobian"]}}, Experiment)
