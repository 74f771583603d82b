"""Laws of edge enhancement."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from jaxsr.nn.edges import EdgeEnhancement, laplacian

X = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
EMBEDDING = jax.random.normal(jax.random.key(1), (2, 4))


def init():
    """Random gains, which start at zero."""
    variables = nn.meta.unbox(EdgeEnhancement().init(jax.random.key(2), X, EMBEDDING))
    return jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(3), leaf.shape), variables)


def test_the_laplacian_is_scipy_s_of_every_channel():
    """Second differences along both axes, the image going on as it ends."""
    expected = np.stack([[scipy.ndimage.laplace(c, mode="nearest") for c in np.moveaxis(x, -1, 0)] for x in np.asarray(X)])
    np.testing.assert_allclose(laplacian(X), np.moveaxis(expected, 1, -1), atol=1e-5)


def test_a_ramp_has_no_edges_and_a_paraboloid_has_the_same_everywhere():
    i, j = np.meshgrid(np.arange(8.0), np.arange(9.0), indexing="ij")
    for image, expected in ((3 * i - 2 * j, 0), (i**2 + 2 * j**2, 6)):
        np.testing.assert_array_equal(laplacian(jnp.asarray(image)[None, :, :, None])[:, 1:-1, 1:-1], expected)


def test_a_constant_image_has_no_edges_not_even_its_border():
    x = jnp.broadcast_to(jnp.array([1.0, -2.0, 0.3]), X.shape)
    np.testing.assert_array_equal(EdgeEnhancement().apply(init(), x, EMBEDDING), x)


def test_it_adds_to_each_channel_its_laplacian_times_what_the_embedding_says():
    variables = init()
    gain = EMBEDDING @ variables["params"]["gain"]["kernel"] + variables["params"]["gain"]["bias"]
    expected = X + gain[:, None, None, :] * laplacian(X)
    np.testing.assert_allclose(EdgeEnhancement().apply(variables, X, EMBEDDING), expected, atol=1e-5)


def test_it_starts_as_the_identity_and_its_gain_has_a_gradient():
    variables = nn.meta.unbox(EdgeEnhancement().init(jax.random.key(2), X, EMBEDDING))
    np.testing.assert_array_equal(EdgeEnhancement().apply(variables, X, EMBEDDING), X)
    gradient = jax.grad(lambda v: (EdgeEnhancement().apply(v, X, EMBEDDING) * X).sum())(variables)
    assert np.abs(gradient["params"]["gain"]["kernel"]).min() > 0


def test_in_bfloat16_the_differences_of_neighbours_keep_their_digits():
    """A faint edge on a bright ground, 256 or 258, which bfloat16 just holds; of their sums it holds multiples of 8 at best."""
    x = 256 + 2.0 * jax.random.bernoulli(jax.random.key(0), shape=(1, 8, 8, 1))
    np.testing.assert_array_equal(laplacian(x.astype(jnp.bfloat16)), laplacian(x))
