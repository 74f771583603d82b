"""Laws of how experts and gate learn together [MoEDiff-SR, Eqs. 13–18]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.methods.mixture import (
    CEILING,
    DIVERSITY_FLOOR,
    TEMPERATURE_FLOOR,
    diversity,
    gate_target,
    gating_errors,
    initial_variance,
    mixed_errors,
    temperature,
    uncertainty_weight,
    updated_variance,
    variance,
    warmed,
)

THREE = np.array([[0.9, 0.97, 0.95], [0.2, 0.9, 0.1]], np.float32)  # cosines [B, K]


def gates(*shape, seed=0):
    """Weights of a gate, `[…, K]`."""
    return jax.nn.softmax(jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32))


def test_the_expert_loss_is_the_convex_combination_of_its_parts():
    """Eq. 13: of equal losses it is that loss, and a gate that has chosen leaves the chosen one's."""
    errors = np.random.default_rng(1).random((4, 3)).astype(np.float32)
    np.testing.assert_allclose(mixed_errors(gates(4, 3), np.full((4, 3), 0.7)), 0.7, rtol=1e-6)
    np.testing.assert_array_equal(mixed_errors(jnp.eye(3)[jnp.array([0, 2, 1, 1])], errors), errors[range(4), [0, 2, 1, 1]])


def test_the_temperature_of_three_experts_is_the_smaller_gap():
    """Eq. 14, by hand: the median of 0.9, 0.95, 0.97 is 0.95, the deviations 0.05, 0, 0.02, and their median 0.02."""
    np.testing.assert_allclose(temperature(THREE), 1.4826 * np.array([0.02, 0.1]), rtol=1e-5)


def test_of_a_normal_distribution_the_temperature_is_the_deviation():
    """Eq. 14: what 1.4826 is for."""
    similarity = 0.5 + 0.03 * np.random.default_rng(0).normal(size=20_001)
    np.testing.assert_allclose(temperature(similarity), 0.03, rtol=0.03)


def test_the_temperature_has_a_floor_where_two_experts_agree():
    """Eq. 14 is 0 there, and Eq. 15 would divide by it."""
    agreed = np.array([0.5, 0.9, 0.9], np.float32)
    assert float(temperature(agreed)) == np.float32(TEMPERATURE_FLOOR)
    assert float(temperature(agreed, 0.25)) == 0.25
    np.testing.assert_allclose(gate_target(agreed), [0, 0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 5, 3), (6, 2)])
def test_what_the_gate_is_asked_for_sums_to_one_and_prefers_who_is_nearer(shape):
    """Eq. 15, of slices and of pixels."""
    similarity = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    target = gate_target(similarity)
    np.testing.assert_allclose(target.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(target.argmax(-1), similarity.argmax(-1))


def test_what_the_gate_is_asked_for_depends_on_no_scale_of_the_cosines():
    """Eqs. 14 and 15 above the floor: T grows with the distances, so a and b + s a give the same."""
    np.testing.assert_allclose(gate_target(THREE), gate_target(0.3 + 0.2 * THREE), rtol=1e-4)
    np.testing.assert_allclose(gate_target(THREE)[0, 1] / gate_target(THREE)[0, 2], np.exp(1 / 1.4826), rtol=1e-4)


def test_no_gradient_goes_through_the_target_or_its_temperature():
    """Eqs. 14 and 15: exactly zero, while Eq. 16 has one by the gate."""
    weights = gates(2, 3)
    np.testing.assert_array_equal(jax.grad(lambda c: temperature(c).sum())(THREE), 0)
    by_similarity, by_weights = jax.grad(lambda c, g: gating_errors(g, gate_target(c)).sum(), (0, 1))(THREE, weights)
    np.testing.assert_array_equal(by_similarity, 0)
    np.testing.assert_allclose(by_weights, -gate_target(THREE) / 3 / weights, rtol=1e-5)


def test_the_gating_loss_is_least_where_the_gate_does_as_it_is_asked():
    """Eq. 16, first term: there it is the target's entropy over K; and a uniform target of a uniform gate costs log K / K."""
    target = gates(5, 3)
    least = gating_errors(target, target)
    np.testing.assert_allclose(least, -(target * np.log(target)).sum(-1) / 3, rtol=1e-5)
    for seed in range(1, 6):
        assert (gating_errors(gates(5, 3, seed=seed), target) > least).all()
    np.testing.assert_allclose(gating_errors(np.full((1, 3), 1 / 3), np.full((1, 3), 1 / 3)), np.log(3) / 3, rtol=1e-6)


def test_a_gate_that_has_left_an_expert_costs_much_and_no_infinity():
    """Eq. 16, first term."""
    value, slope = jax.value_and_grad(lambda g: gating_errors(g, np.full(3, 1 / 3)))(jnp.array([1.0, 0.0, 0.0]))
    assert 10 < float(value) < 100
    assert np.isfinite(slope).all()


# ------------------------------------------------------------------------------------------------ diversity

ONE, OTHER = np.random.default_rng(2).normal(size=(2, 2, 4, 4, 3)).astype(np.float32)  # [B, h, w, C]


def orthogonal(experts):
    """`[K, B, h, w, C]`, each expert with pixels of its own."""
    x0s = np.zeros((experts, *ONE.shape), np.float32)
    for i in range(experts):
        x0s[i, :, i] = ONE[:, i]
    return x0s


@pytest.mark.parametrize("experts", [2, 3, 4])
def test_experts_that_agree_cost_log_two_and_orthogonal_ones_nothing(experts):
    """Eq. 16, second term."""
    np.testing.assert_allclose(diversity(np.stack([ONE] * experts)), [np.log(2)] * 2, rtol=1e-6)
    np.testing.assert_allclose(diversity(orthogonal(experts)), [0, 0], atol=1e-6)


def test_diversity_is_of_each_experts_nearest_other():
    """Eq. 16, second term: of two that agree and one that is orthogonal, log(1 + (1 + 1 + 0)/3)."""
    one, other = orthogonal(2)
    np.testing.assert_allclose(diversity(np.stack([one, other, 2 * one])), np.log(5 / 3), rtol=1e-6)


def test_a_slices_diversity_is_its_own():
    x0s = np.stack([ONE, OTHER, ONE + OTHER])
    np.testing.assert_allclose(diversity(x0s)[1:], diversity(x0s[:, 1:]), rtol=1e-6)


def test_opposite_experts_cost_the_floor_and_three_never_reach_it():
    """Eq. 16, second term: 1 + cos is 0 of two opposite ones; three in a plane at 120° are as far as three can be, 1 − 1/2."""
    np.testing.assert_allclose(diversity(np.stack([ONE, -ONE])), np.log(DIVERSITY_FLOOR), rtol=1e-5)
    a, b = orthogonal(2)
    b *= np.sqrt((a**2).sum((1, 2, 3)) / (b**2).sum((1, 2, 3)))[:, None, None, None]  # of one length
    spread = np.stack([np.cos(angle) * a + np.sin(angle) * b for angle in (0, 2 * np.pi / 3, 4 * np.pi / 3)])
    np.testing.assert_allclose(diversity(spread), np.log(0.5), rtol=1e-5)


@pytest.mark.parametrize("x0s", [
    np.stack([ONE, ONE, ONE]), np.stack([ONE, -ONE]), np.stack([ONE, 0 * ONE, OTHER]), np.zeros((3, *ONE.shape), np.float32),
], ids=["equal", "opposite", "one zero", "zero"])  # fmt: skip
def test_the_gradient_of_diversity_is_finite(x0s):
    assert np.isfinite(jax.grad(lambda x0s: diversity(x0s).sum())(x0s)).all()


def test_one_expert_has_no_diversity():
    with pytest.raises(ValueError, match="between experts, got 1: give two or more"):
        diversity(ONE[None])


# ------------------------------------------------------------------------------------------------ the weight of the gating loss


def test_the_mean_of_what_parts_of_a_batch_make_is_what_the_batch_makes():
    """Eq. 17: neither accumulation nor devices change the statistics, and with them w."""
    errors, stats = np.random.default_rng(0).random(12).astype(np.float32), initial_variance()
    whole = updated_variance(stats, errors)
    parts = [updated_variance(stats, part) for part in errors.reshape(4, 3)]
    averaged = {name: np.mean([part[name] for part in parts]) for name in stats}
    for name in stats:
        np.testing.assert_allclose(averaged[name], whole[name], rtol=1e-6)
    assert float(variance(averaged)) == pytest.approx(float(variance(whole)), rel=1e-6)


@pytest.mark.parametrize("size", [1, 4, 64])
def test_the_variance_becomes_that_of_slices_whatever_the_batch_size(size):
    """Eq. 17, EMA of 0.99: in the mean over the last of many batches, as that of one forgets what is older than a hundred."""
    errors = 1.1 + 0.2 * np.random.default_rng(0).normal(size=(4000, size)).astype(np.float32)

    def step(stats, batch):
        stats = updated_variance(stats, batch)
        return stats, variance(stats)

    variances = jax.jit(lambda errors: jax.lax.scan(step, initial_variance(), errors)[1])(errors)
    np.testing.assert_allclose(variances[1000:].mean(), 0.2**2, rtol=0.1)


def test_the_weight_begins_at_one_and_a_steady_loss_raises_it_to_its_ceiling():
    """Eq. 17: 1/σ² of a loss that does not vary would be infinite."""
    stats = initial_variance()
    assert float(uncertainty_weight(stats)) == 1
    weights = []
    for _ in range(1000):
        stats = updated_variance(stats, np.full(2, 1.0, np.float32))
        weights.append(float(uncertainty_weight(stats)))
    assert (np.diff(weights) >= 0).all()
    assert weights[0] < 1.1
    assert weights[-1] == pytest.approx(CEILING)


@pytest.mark.parametrize("square, expected", [(1.25, 4), (1.0, 50), (0.9999999, 50), (1.001, 50), (3.0, 0.5)])
def test_the_weight_is_one_over_the_variance_below_its_ceiling(square, expected):
    """Eq. 17, with a mean of 1; also where rounding makes the variance negative."""
    stats = {"mean": jnp.float32(1), "square": jnp.float32(square)}
    assert float(uncertainty_weight(stats, ceiling=50)) == pytest.approx(expected)


def test_no_gradient_goes_through_the_weight_or_its_statistics():
    """Eqs. 17 and 18: else the loss would be lowered by being made to vary."""

    def weight(errors):
        return uncertainty_weight(updated_variance(initial_variance(), errors)) + sum(updated_variance(initial_variance(), errors).values())

    np.testing.assert_array_equal(jax.grad(weight)(jnp.arange(4.0)), 0)
    by_stats = jax.grad(uncertainty_weight)(initial_variance())
    assert all(float(slope) == 0 for slope in by_stats.values())


# ------------------------------------------------------------------------------------------------ warm-up


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 5, 2)])
def test_weights_are_uniform_for_the_first_fifth_and_the_gates_after(shape):
    """§III-C: 1000 of 5000 epochs; so the gate has no gradient by Eq. 13 before."""
    weights = gates(*shape)
    for progress in (0.0, 0.1999):
        np.testing.assert_array_equal(warmed(weights, jnp.float32(progress)), np.full(shape, np.float32(1 / shape[-1])))
        np.testing.assert_array_equal(jax.grad(lambda g, p=progress: (warmed(g, jnp.float32(p)) ** 2).sum())(weights), 0)
    for progress in (0.2, 1.0):
        np.testing.assert_array_equal(warmed(weights, jnp.float32(progress)), weights)
    np.testing.assert_array_equal(warmed(weights, jnp.float32(0.0), share=0.0), weights)
