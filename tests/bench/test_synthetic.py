"""What benchmarks are fed has the shapes of the real thing and is not trivial."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_batch, synthetic_head, synthetic_variables
from jaxsr.experiment import DataConfig, Experiment
from jaxsr.methods.condition import Batch
from jaxsr.methods.sr3 import Sr3Config, Sr3NetworkConfig
from jaxsr.volume.geometry import target_grid

NETWORK = Sr3NetworkConfig(width=8, multipliers=(1, 2), blocks=1, attention_at=(), groups=4)
TINY = Experiment(method=Sr3Config(network=NETWORK), data=DataConfig(crop=16))
IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)


@pytest.mark.parametrize("shape", [(192, 192, 192), (260, 310, 260), (33, 47, 20)])
def test_a_head_has_exactly_the_target_asked_for(shape):
    head = synthetic_head(shape, TINY)
    assert target_grid(head.grid, TINY.data.voxel_size).shape == shape
    assert max(head.data.shape) < max(shape)
    assert head.data.max() > head.data.min()


def test_a_head_without_voxels_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        synthetic_head((0, 8, 8), TINY)


def test_slices_fill_the_window_and_labels_are_whole_numbers():
    batch = synthetic_batch(Batch(high=IMAGE, low=IMAGE, labels=jax.ShapeDtypeStruct((2, 8, 8), jnp.uint8)), seed=0)
    assert batch.high.shape == IMAGE.shape
    assert np.abs(batch.high).max() <= 1
    assert not np.array_equal(batch.high, batch.low)
    assert batch.labels.dtype == np.uint8


def test_scans_are_coarser_than_their_slices_and_all_axes_serve():
    """What a network takes the logarithm of."""
    told = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in (("scale", (2, 3)), ("axes", (2,)), ("quality", (2, 5)))}
    batch = synthetic_batch(Batch(high=IMAGE, low=IMAGE, **told), seed=0)
    assert (batch.scale == 2).all()
    assert (batch.axes == 3).all()
    assert (batch.quality > 0).all()


def test_no_kernel_is_zero_and_equal_seeds_give_equal_weights():
    first, second = (synthetic_variables(TINY.method.build(), Batch(high=IMAGE, low=IMAGE), seed=3) for _ in range(2))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(first["params"]))
    assert jax.tree.all(jax.tree.map(np.array_equal, first, second))
