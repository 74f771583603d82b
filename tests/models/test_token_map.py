"""What experts are shown of the tokens [MoEDiff-SR, Fig. 2]."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxsr.models.token_map import TokenMap

SHAPE = (8, 12)
GRIDS = (jnp.zeros((2, 2, 3, 5)), jnp.zeros((2, 4, 6, 5)))


def made():
    map_ = TokenMap(7)
    return map_, nn.meta.unbox(map_.init(jax.random.key(0), GRIDS, SHAPE))


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=grid.shape), jnp.float32) for grid in GRIDS)


def test_it_is_the_sum_of_resized_grids_projected():
    """Resized first and projected then, by NumPy: the two may change places."""
    map_, variables = made()
    grids, params = drawn(), variables["params"]
    params["scale0"]["bias"] += 0.5
    resized = [np.asarray(jax.image.resize(grid, (2, *SHAPE, 5), "bilinear"), np.float64) for grid in grids]
    expected = sum(of @ np.asarray(params[f"scale{scale}"]["kernel"], np.float64)[0, 0] for scale, of in enumerate(resized)) + 0.5
    np.testing.assert_allclose(map_.apply({"params": params}, grids, SHAPE), expected, rtol=1e-4, atol=1e-5)


def test_a_token_is_seen_where_its_patch_lies():
    """Of the 4 × 6 grid each token has 2 × 2 of the latents' 8 × 12 pixels."""
    map_, variables = made()
    for row, column in ((0, 5), (3, 1), (2, 4)):
        grids = (GRIDS[0], GRIDS[1].at[1, row, column].set(1.0))
        strength = np.abs(map_.apply(variables, grids, SHAPE)).sum(-1)
        assert not strength[0].any()
        at = np.argwhere(strength[1] > 0.99 * strength[1].max()) // 2
        assert {tuple(place) for place in at} == {(row, column)}
