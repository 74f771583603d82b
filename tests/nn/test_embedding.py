"""Laws of sinusoidal embeddings [Vaswani et al. 2017; WaveGrad, §3]."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.nn.embedding import sinusoids


def test_it_is_sines_then_cosines_at_frequencies_from_1_down_by_ten_thousand():
    s, n = jnp.array([0.0, 0.3, 900.0]), 8
    angle = np.outer(s, 1e-4 ** (np.arange(n) / n))
    np.testing.assert_allclose(sinusoids(s, 2 * n), np.hstack([np.sin(angle), np.cos(angle)]), atol=1e-4)


def test_each_pair_lies_on_the_unit_circle():
    embedding = sinusoids(jnp.linspace(0, 1, 7), 12)
    np.testing.assert_allclose(embedding[:, :6] ** 2 + embedding[:, 6:] ** 2, 1, atol=1e-6)


def test_it_is_float32_whatever_comes_in():
    assert sinusoids(jnp.ones(2, jnp.bfloat16), 4).dtype == jnp.float32


def test_an_odd_number_of_features_is_refused_by_value():
    with pytest.raises(ValueError, match="got 7"):
        sinusoids(jnp.ones(2), 7)
