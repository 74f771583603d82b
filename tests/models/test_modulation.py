"""Laws of the intensity branch, the plain network and what a UNet makes of modulation [SPCDD §3.3, Table 1; 30-spcdd]."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.models.modulation import IntensityBranch
from jaxsr.models.plain import PlainNetwork
from jaxsr.models.unet import LatentUNet
from jaxsr.nn.film import modulated

UNET = LatentUNet(channels=2, width=8, multipliers=(1, 2), blocks=1, attention_at=(2,), heads=2, context_width=4, groups=4)


def random(variables, seed=0, scale=0.3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * scale, jnp.float32), nn.meta.unbox(variables))


def test_features_are_scaled_and_shifted_pixel_by_pixel():
    f, s, b = jax.random.normal(jax.random.key(0), (3, 2, 4, 5, 3))
    np.testing.assert_allclose(modulated(f, jnp.concatenate([s, b], -1)), (1 + s) * f + b, rtol=1e-6)
    np.testing.assert_array_equal(modulated(f, jnp.zeros((2, 4, 5, 6))), f)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_there_is_one_modulation_a_level_which_starts_at_none_and_is_of_each_pixel(factor):
    branch = IntensityBranch((6, 10), factor, base=4, groups=2)
    y = jax.random.normal(jax.random.key(0), (2, 16 * factor, 24 * factor, 1))
    variables = branch.init(jax.random.key(1), y)
    first = branch.apply(variables, y)
    assert [m.shape for m in first] == [(2, 16, 24, 12), (2, 8, 12, 20)]
    assert not any(np.any(m) for m in first)
    trained = branch.apply(random(variables), y)
    assert all(np.ptp(m, axis=(1, 2)).min() > 1e-3 for m in trained)


def test_a_branch_halves_the_resolution():
    with pytest.raises(ValueError, match="power of two, got 3"):
        jax.eval_shape(IntensityBranch((4,), 3).init, jax.random.key(0), jnp.zeros((1, 12, 12, 1)))


def test_a_pixel_of_the_plain_network_sees_seven_by_seven():
    """Three convolutions of 3 × 3."""
    network, x = PlainNetwork(4), jax.random.normal(jax.random.key(0), (1, 15, 15, 2))
    variables = random(network.init(jax.random.key(1), x))
    seen = np.abs(jax.grad(lambda x: network.apply(variables, x)[0][0, 7, 7, 0])(x)).sum((0, 3)) > 0
    assert seen[4:11, 4:11].mean() > 0.9  # a rectifier may be shut
    seen[4:11, 4:11] = False
    assert not seen.any()


def test_the_plain_network_is_told_the_time_only_if_it_is_timed():
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jnp.array([3.0, 900.0])
    for timed in (True, False):
        network = PlainNetwork(4, timed)
        variables = random(network.init(jax.random.key(1), x, t))
        outputs = [network.apply(variables, x, time)[0] for time in (t, t[::-1])]
        assert np.allclose(*outputs) != timed


def test_a_unet_is_modulated_at_every_resolution_and_shows_its_middle():
    """30-spcdd: zeros change nothing; of each level they change something."""
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 12, 4)), jnp.array([3.0, 70.0])
    variables = random(UNET.init(jax.random.key(1), x, t))
    plain, sown = UNET.apply(variables, x, t, mutable=["features"])
    assert sown["features"]["middle"][0].shape == (2, 4, 6, 16)
    none = (jnp.zeros((2, 8, 12, 16)), jnp.zeros((2, 4, 6, 32)))
    np.testing.assert_array_equal(UNET.apply(variables, x, t, modulation=none), plain)
    for level in (0, 1):
        some = tuple(m + 0.5 * (i == level) for i, m in enumerate(none))
        assert not np.allclose(UNET.apply(variables, x, t, modulation=some), plain, atol=1e-3)
