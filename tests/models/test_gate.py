"""Laws of patches, encoder and gate [MoEDiff-SR, Eqs. 1–4]."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxsr.models.gate import Gate, Gating, MultiScalePatches, TokenEncoder, gate_weights, token_weights, updated_usage
from jaxsr.runtime.mesh import make_mesh, variable_shardings

TINY = {"patches": (8, 4, 2), "width": 6, "depth": 2, "heads": 2}
USAGE = jnp.array([0.5, 0.2, 0.3])


def drawn(module, *inputs, scale=0.4):
    """Random weights, biases and norms too, without compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def grids(batch=2, width=6, sides=((1, 2), (2, 4), (3, 5))):
    return tuple(random(batch, *side, width, seed=i) for i, side in enumerate(sides))


@pytest.fixture(scope="module")
def encoder():
    """A tiny one, jitted with its weights, and slices of 5 × 4 of its largest patches."""
    image = random(2, 40, 32, 1)
    variables = drawn(TokenEncoder(**TINY), image)
    return jax.jit(lambda image: TokenEncoder(**TINY).apply(variables, image)), image, variables


@pytest.fixture(scope="module")
def gate():
    """Of three experts, jitted, and its weights."""
    return jax.jit(Gate().apply), drawn(Gate(), grids())


# Patches and the encoder


def test_patches_are_cut_out_and_multiplied_by_a_matrix_one_a_scale():
    """MoEDiff-SR, §II-A: non-overlapping convolutions, whose kernel and stride are the patch."""
    patches, image = MultiScalePatches((4, 2), 5), random(2, 8, 12, 3)
    variables = drawn(patches, image)
    out = patches.apply(variables, image)
    for p, tokens in zip((4, 2), out, strict=True):
        layer = variables["params"][f"size{p}"]
        cut = np.float64(image).reshape(2, 8 // p, p, 12 // p, p, 3).swapaxes(2, 3).reshape(2, 8 // p, 12 // p, -1)
        np.testing.assert_allclose(tokens, cut @ np.float64(layer["kernel"]).reshape(-1, 5) + layer["bias"], atol=1e-5)


@pytest.mark.parametrize("sides, expected", [
    ((256, 256), [(4, 4), (8, 8), (16, 16)]),
    ((320, 256), [(5, 4), (10, 8), (20, 16)]),
    ((128, 128), [(2, 2), (4, 4), (8, 8)]),  # the first is smaller than a window
])  # fmt: skip
def test_there_is_one_token_a_patch_and_336_of_a_published_slice(sides, expected):
    """MoEDiff-SR, Eq. 1: z_c of N × d; parameters do not depend on the slice's sides."""
    out, variables = jax.eval_shape(TokenEncoder().init_with_output, jax.random.key(0), jnp.ones((1, *sides, 1)))
    assert [tokens.shape for tokens in out] == [(1, *side, 384) for side in expected]
    assert sides != (256, 256) or sum(tokens.size for tokens in out) == 336 * 384
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 12_714_852


def test_each_scale_is_encoded_by_itself_with_the_same_blocks(encoder):
    """One encoder of three scales is three of one scale, which differ in their patches alone."""
    apply, image, variables = encoder
    for p, tokens in zip(TINY["patches"], apply(image), strict=True):
        params = {**variables["params"], "patches": {f"size{p}": variables["params"]["patches"][f"size{p}"]}}
        (alone,) = jax.jit(TokenEncoder(**{**TINY, "patches": (p,)}).apply)({"params": params}, image)
        np.testing.assert_allclose(tokens, alone, atol=1e-5)


def test_slices_do_not_see_each_other(encoder):
    apply, image, _ = encoder
    for both, other in zip(apply(image), apply(image.at[1].multiply(2)), strict=True):
        np.testing.assert_array_equal(both[0], other[0])
        assert np.abs(both[1] - other[1]).max() > 1e-2


@pytest.mark.parametrize("depth, side", [(1, 4), (2, 6), (3, 8)])
def test_every_other_block_is_shifted(depth, side):
    """A token in the first window of three by three reaches that window, then those that share a shifted one, then all of theirs."""
    network, image = TokenEncoder((2,), 6, depth, heads=2), random(1, 24, 24, 1)
    apply = jax.jit(lambda image, v=drawn(network, image): network.apply(v, image)[0])
    changed = np.abs(apply(image.at[0, 6, 6].add(1)) - apply(image)).max(axis=(0, 3)) > 0
    np.testing.assert_array_equal(changed, np.maximum(*np.indices((12, 12))) < side)


def test_scales_are_told_apart_where_all_patches_look_alike(encoder):
    """A black slice: what is left of the projections is one vector a scale."""
    apply, image, _ = encoder
    large, medium, small = (tokens[0, 0, 0] for tokens in apply(jnp.zeros_like(image)))
    assert min(np.abs(a - b).max() for a, b in ((large, medium), (medium, small), (large, small))) > 1e-2


def test_computing_activations_again_changes_neither_values_nor_gradients():
    network, image = TokenEncoder((4, 2), 6, depth=1, heads=2), random(1, 8, 8, 1)
    variables = drawn(network, image)

    def run(network):
        return jax.jit(jax.value_and_grad(lambda v: sum((tokens**3).sum() for tokens in network.apply(v, image))))(variables)

    for one, other in zip(jax.tree.leaves(run(network)), jax.tree.leaves(run(network.clone(remat=True))), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


# The gate


def test_attention_and_scores_are_their_equations(gate):
    """MoEDiff-SR, Eqs. 2–3, in loops over slices, experts and tokens of all scales; 10⁻⁶ of values in [−1, 1]."""
    apply, variables = gate
    gating, params = apply(variables, grids()), jax.tree.map(np.float64, variables["params"])
    assert [a.shape for a in gating.attention] == [c.shape for c in gating.cosine] == [(2, 1, 2, 3), (2, 2, 4, 3), (2, 3, 5, 3)]
    for b in range(2):
        tokens = np.concatenate([np.float64(grid[b]).reshape(-1, 6) for grid in grids()])
        inner = tokens @ params["in"]["kernel"] + params["in"]["bias"]
        refined = (inner * norm.cdf(inner)) @ params["out"]["kernel"] + params["out"]["bias"]
        for i, q in enumerate(params["queries"]):
            cosine = np.array([q @ z / np.sqrt((q @ q) * (z @ z)) for z in refined])
            attention = np.exp(cosine) / sum(np.exp(c) for c in cosine)
            for ours, expected in ((gating.cosine, cosine), (gating.attention, attention)):
                np.testing.assert_allclose(np.concatenate([m[b, ..., i].reshape(-1) for m in ours]), expected, atol=1e-6)
            np.testing.assert_allclose(gating.score[b, i], sum(a * c for a, c in zip(attention, cosine, strict=True)), atol=1e-6)


def test_the_order_of_tokens_changes_no_score_not_even_across_scales(gate):
    """MoEDiff-SR, Eqs. 2–3 are sums over all tokens."""
    apply, variables = gate
    tokens = np.concatenate([grid.reshape(2, -1, 6) for grid in grids()], axis=1)
    mixed = np.split(tokens[:, np.random.default_rng(0).permutation(tokens.shape[1])], [2, 10], axis=1)
    mixed = tuple(part.reshape(grid.shape) for part, grid in zip(mixed, grids(), strict=True))
    assert np.abs(mixed[0] - grids()[0]).max() > 0.1
    np.testing.assert_allclose(apply(variables, mixed).score, apply(variables, grids()).score, atol=1e-6)


def test_permuting_experts_permutes_everything(gate):
    """MoEDiff-SR, Eqs. 2–4: experts differ in query and usage alone."""
    apply, variables = gate
    order = np.array([2, 0, 1])
    permuted = {"params": {**variables["params"], "queries": variables["params"]["queries"][order]}}
    one, other = apply(variables, grids()), apply(permuted, grids())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[..., order], b, atol=1e-6), one, other)
    for literal in (False, True):
        weights = gate_weights(other.score, USAGE[order], literal=literal)
        np.testing.assert_allclose(gate_weights(one.score, USAGE, literal=literal)[:, order], weights, atol=1e-6)
        weights = token_weights(other, USAGE[order], (6, 4), literal=literal)
        np.testing.assert_allclose(token_weights(one, USAGE, (6, 4), literal=literal)[..., order], weights, atol=1e-6)


def test_the_length_of_a_query_means_nothing_its_direction_does(gate):
    """MoEDiff-SR, Eq. 2: a cosine."""
    apply, variables = gate
    scaled = lambda by: apply({"params": {**variables["params"], "queries": by * variables["params"]["queries"]}}, grids())  # noqa: E731
    for by in (1e-2, 50.0):
        np.testing.assert_allclose(scaled(by).score, scaled(1.0).score, atol=1e-6)
    np.testing.assert_allclose(scaled(-1.0).cosine[0], -scaled(1.0).cosine[0], atol=1e-6)


def test_a_token_of_zeros_has_the_cosine_0_and_finite_gradients(gate):
    """Where the layers' biases are 0, as at the start, a token of zeros is zeros behind the perceptron."""
    _, variables = gate
    params = {**variables["params"]}
    for layer in ("in", "out"):
        params[layer] = {**params[layer], "bias": jnp.zeros(6)}
    tokens = tuple(grid.at[0].set(0).at[1, 0, 0].set(0) for grid in grids())

    @jax.jit
    def run(params, tokens):
        gating = Gate().apply({"params": params}, tokens)
        return gate_weights(gating.score, USAGE)[:, 0].sum(), gating

    gradients, gating = jax.grad(run, (0, 1), has_aux=True)(params, tokens)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_array_equal(gating.score[0], 0)
    for cosine in gating.cosine:
        np.testing.assert_array_equal(cosine[1, 0, 0], 0)
    np.testing.assert_allclose(np.concatenate([a[0].reshape(-1, 3) for a in gating.attention]), 1 / 25, rtol=1e-6)


def test_a_query_of_zeros_has_a_finite_gradient_and_can_leave_zero(gate):
    _, variables = gate
    score = lambda q: Gate().apply({"params": {**variables["params"], "queries": q}}, grids()).score.sum()  # noqa: E731
    gradient = jax.jit(jax.grad(score))(jnp.zeros((3, 6)))
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max(axis=1) > 0).all()


# Eq. 4


@pytest.mark.parametrize("gamma", [0.0, 0.1, 3.0])
def test_weights_are_the_product_of_two_softmaxes_made_to_sum_to_one(gamma):
    """MoEDiff-SR, Eq. 4, and as printed where `literal` says so: a sum of Σ_i softmax(score)_i softmax(−γ c)_i."""
    score = random(4, 3)
    for s, weights, printed in zip(
        np.float64(score), gate_weights(score, USAGE, gamma), gate_weights(score, USAGE, gamma, literal=True), strict=True
    ):
        by_score, by_usage = ([np.exp(v) / sum(np.exp(u) for u in values) for v in values] for values in (s, -gamma * np.float64(USAGE)))
        product = [a * b for a, b in zip(by_score, by_usage, strict=True)]
        np.testing.assert_allclose(printed, product, rtol=1e-5)
        np.testing.assert_allclose(weights, np.array(product) / sum(product), rtol=1e-5)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("experts", [2, 3, 5])
def test_as_printed_they_sum_to_one_over_k_where_scores_or_usage_are_balanced(experts):
    """MoEDiff-SR, Eq. 4: why Eq. 9 needs them normalised."""
    score, usage, equal = random(4, experts), jax.random.dirichlet(jax.random.key(0), jnp.ones(experts)), jnp.full(experts, 1 / experts)
    for s, c in ((score, equal), (jnp.broadcast_to(equal, score.shape), usage)):
        np.testing.assert_allclose(gate_weights(s, c, 2.0, literal=True).sum(-1), 1 / experts, rtol=1e-5)


def test_no_expert_outweighs_another_by_more_than_e_squared_and_the_factor_of_their_usage(gate):
    """MoEDiff-SR, Eqs. 2–4: scores are means of cosines. Reached where all tokens lie along one expert's query and against another's."""
    apply, variables = gate
    extreme = gate_weights(jnp.array([1.0, -1.0]), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(extreme[0] / extreme[1], np.exp(2 + 0.1), rtol=1e-5)
    z = random(6)
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    params["out"]["bias"], params["queries"] = z, jnp.stack([3 * z, -z, 0 * z])
    np.testing.assert_allclose(apply({"params": params}, grids()).score, [[1, -1, 0]] * 2, atol=1e-6)


def test_an_expert_that_was_used_more_gets_less_and_the_others_more():
    """MoEDiff-SR, Eq. 4, for each of three experts, at any score."""
    for literal in (False, True):
        by_usage = jax.jit(jax.jacrev(partial(gate_weights, random(4, 3), literal=literal)))(USAGE)  # [4, 3, 3]
        own = np.eye(3, dtype=bool)
        assert (by_usage[:, own] < 0).all()
        assert (by_usage[:, ~own] > 0).all()


# A weight of every place


def constant(score, sides=((2, 2), (4, 4), (3, 5))):
    """A gating in which every token of a slice has its scores as cosines."""
    maps = tuple(jnp.broadcast_to(score[:, None, None], (len(score), *side, score.shape[-1])) for side in sides)
    return Gating(score, maps, maps)


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("shape", [(8, 8), (3, 2)])
def test_where_all_tokens_agree_every_place_has_the_weights_of_the_slice(shape, literal):
    score = jnp.clip(random(2, 3), -1, 1)
    weights = token_weights(constant(score), USAGE, shape, literal=literal)
    expected = np.broadcast_to(gate_weights(score, USAGE, literal=literal)[:, None, None], (2, *shape, 3))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(32, 20), (5, 3)])
def test_the_weights_of_every_place_are_convex_and_within_those_of_the_tokens(gate, shape):
    apply, variables = gate
    gating = apply(variables, grids())
    weights = token_weights(gating, USAGE, shape, gamma=1.0)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    of_tokens = np.concatenate([gate_weights(c, USAGE, 1.0).reshape(2, -1, 3) for c in gating.cosine], axis=1)
    assert (weights >= of_tokens.min(axis=1)[:, None, None] - 1e-6).all()
    assert (weights <= of_tokens.max(axis=1)[:, None, None] + 1e-6).all()
    assert np.ptp(weights, axis=(1, 2)).max() > 0.01


def test_a_token_weighs_where_it_lies():
    """An expert that is sought in the lower left alone, at every scale, gets most there."""
    flat = constant(jnp.zeros((1, 3)), ((2, 2), (4, 4), (8, 8)))
    cosine = tuple(c.at[:, c.shape[1] // 2 :, : c.shape[2] // 2, 1].set(1.0) for c in flat.cosine)
    weights = token_weights(flat._replace(cosine=cosine), USAGE, (16, 16))[0, ..., 1]
    quarters = weights.reshape(2, 8, 2, 8).mean(axis=(1, 3))
    assert np.unravel_index(quarters.argmax(), (2, 2)) == (1, 0)
    np.testing.assert_allclose(weights[-1, 0], gate_weights(jnp.array([0.0, 1.0, 0.0]), USAGE)[1], rtol=1e-6)  # all scales agree
    np.testing.assert_allclose(weights[0, -1], gate_weights(jnp.zeros(3), USAGE)[1], rtol=1e-6)


# Usage


def test_usage_forgets_by_its_decay_and_comes_to_the_mean_weight():
    """MoEDiff-SR, Eq. 4: c ← 0.99 c + 0.01 mean(G), so c_n = G + 0.99ⁿ (c_0 − G); it stays a distribution."""
    weights = jax.nn.softmax(random(4, 3))
    mean, usage = np.float64(weights).mean(0), USAGE
    for n in range(1, 6):
        usage = updated_usage(usage, weights)
        np.testing.assert_allclose(usage, mean + 0.99**n * (np.float64(USAGE) - mean), rtol=1e-6)
    np.testing.assert_allclose(usage.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 2, 3)])
def test_usage_of_a_batch_is_the_mean_of_that_of_its_halves(shape):
    """So devices may each take the mean of their slices, and of places."""
    weights = jax.nn.softmax(random(*shape))
    halves = [updated_usage(USAGE, half, 0.9) for half in (weights[:2], weights[2:])]
    np.testing.assert_allclose(updated_usage(USAGE, weights, 0.9), (halves[0] + halves[1]) / 2, rtol=1e-6)


# Both


def test_it_computes_in_its_dtype_and_gates_in_float32():
    encoder, gate = TokenEncoder(**TINY, dtype=jnp.bfloat16), Gate(dtype=jnp.bfloat16)
    tokens, variables = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.ones((1, 16, 16, 1)))
    gating, others = jax.eval_shape(gate.init_with_output, jax.random.key(0), tokens)
    assert {leaf.dtype for leaf in tokens} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, others, gating))} == {jnp.dtype(jnp.float32)}


def test_every_dimension_has_a_name_that_the_mesh_knows():
    """Names that it does not know are refused; 296,832 parameters at 384 features."""
    mesh = make_mesh(devices=jax.devices()[:1])
    variable_shardings(mesh, jax.eval_shape(TokenEncoder(**TINY).init, jax.random.key(0), jnp.ones((1, 16, 16, 1))))
    boxed = jax.eval_shape(Gate().init, jax.random.key(0), grids(width=384))
    variable_shardings(mesh, boxed)
    assert sum(leaf.size for leaf in jax.tree.leaves(boxed)) == 296_832


@pytest.mark.parametrize("changed, shape, message", [
    ({}, (1, 16, 12, 1), r"multiples of 8 for patches of \(8, 4, 2\), got 16 × 12: pad the slice"),
    ({"patches": (6, 4)}, (1, 12, 18, 1), r"multiples of 12 for patches of \(6, 4\), got 12 × 18"),
    ({"patches": (2, 4)}, (1, 16, 16, 1), r"from the largest to the smallest, got \(2, 4\)"),
    ({"patches": (4, 4)}, (1, 16, 16, 1), r"from the largest to the smallest, got \(4, 4\)"),
    ({"heads": 4}, (1, 16, 16, 1), "got 6 channels and 4 heads"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(changed, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(TokenEncoder(**{**TINY, **changed}).init, jax.random.key(0), jnp.zeros(shape))
