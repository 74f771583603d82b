"""What benchmarks are fed: made at once, whatever the size, and never all zeros, which devices multiply with less power and so faster."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxsr.experiment import Experiment
from jaxsr.methods.base import Batch, Method, Variables
from jaxsr.physics.acquisition import acquired_shape
from jaxsr.upscale.inputs import IN_PLANE_SIDE
from jaxsr.volume.io import Volume


def synthetic_variables(method: Method, batch: Batch, seed: int) -> Variables:
    """Normal weights on the host, the variance of a kernel one over its inputs; `batch` may be abstract.

    The method's own initial values would do as well, but compiling them takes longer than many benchmarks.
    """
    zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)  # noqa: E731
    shapes = jax.eval_shape(lambda key: nn.meta.unbox(method.init(key, jax.tree.map(zeros, batch))), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        values = rng.standard_normal(leaf.shape, np.float32) / np.float32(np.prod(leaf.shape[:-1]) ** 0.5)
        return np.asarray(values, leaf.dtype)

    return jax.tree.map(draw, shapes)  # type: ignore[no-any-return]


def synthetic_batch(batch: Batch, seed: int) -> Batch:
    """Noise in -1…1 on the host, of the shapes of `batch`; integers (labels) are zero."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        return rng.uniform(-1, 1, leaf.shape).astype(leaf.dtype)

    return jax.tree.map(draw, batch)  # type: ignore[no-any-return]


def synthetic_head(shape: tuple[int, int, int], experiment: Experiment) -> Volume:
    """An ellipsoid of noise on the acquired grid, whose target grid has exactly `shape` voxels.

    Raises:
      ValueError: for sides below 1.
    """
    if min(shape) < 1:
        raise ValueError(f"a volume's sides must be at least 1, got {shape}")
    target = (experiment.data.voxel_size,) * 3
    coarse = acquired_shape(shape, target, experiment.data.acquisition.typical)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in coarse), indexing="ij", sparse=True)
    noise = np.random.default_rng(experiment.seed).uniform(300, 1000, coarse)
    data = np.where(sum(x**2 for x in axes) < 0.8, noise, 0).astype(np.float32)
    voxel_size = [v * n / m for v, n, m in zip(target, shape, coarse, strict=True)]
    return Volume(data, np.diag([*voxel_size, 1.0]))


def smallest_side(experiment: Experiment) -> int:
    """Voxels that a side of `synthetic_head` must have for slices of all three axes to serve."""
    target, acquisition = (experiment.data.voxel_size,) * 3, experiment.data.acquisition.typical
    side = IN_PLANE_SIDE
    while min(acquired_shape((side,) * 3, target, acquisition)) < IN_PLANE_SIDE:
        side += 1
    return side
