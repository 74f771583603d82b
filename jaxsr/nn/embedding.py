"""Embeddings of scalars: sines and cosines at frequencies that fall geometrically [Vaswani et al. 2017; WaveGrad, §3].

e(s)_i = sin(s · f_i), cos(s · f_i),      f_i = 10⁻⁴ to the power i / n,      i = 0 … n − 1
"""

import jax.numpy as jnp
import numpy as np
from jax import Array


def sinusoids(scalar: Array, features: int) -> Array:
    """`scalar` `[B]` → `[B, features]` float32: all sines, then all cosines. `features` must be even."""
    if features % 2:
        raise ValueError(f"an embedding of sines and cosines needs an even number of features, got {features}")
    count = features // 2
    frequencies = np.exp(-np.log(1e4) * np.arange(count) / count).astype(np.float32)
    angle = scalar.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
