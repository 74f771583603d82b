"""Laws of laying arrays over devices; those of many devices run on four made of one processor, in a process of its own."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jaxsr.runtime.mesh import AXES, FSDP_FLOOR, LOGICAL_AXES, MeshError, _spec, make_mesh, share_of_batch, variable_shardings


def mesh_of(**sizes):
    """A mesh of shapes alone."""
    return AbstractMesh(tuple(sizes.get(a, 1) for a in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))


CONV = ("kernel_height", "kernel_width", "conv_in", "conv_out")


def test_a_logical_axis_that_is_not_in_the_table_is_refused_by_name():
    boxed = {"kernel": nn.LogicallyPartitioned(jax.ShapeDtypeStruct((4, 4), np.float32), ("conv_inn", "conv_out"))}
    with pytest.raises(ValueError, match=r"conv_inn.*conv_out"):
        variable_shardings(make_mesh(), boxed)


@pytest.mark.parametrize("sizes, message", [
    ({"data": 3 * jax.device_count()}, "does not cover"),
    ({"data": -1, "fsdp": jax.device_count() + 1}, f"does not cover {jax.device_count()} devices"),
    ({"data": -1, "fsdp": -1}, "one of them may be -1"),
    ({"data": 0}, "must be positive"),
    ({"data": -2}, "must be positive"),
])  # fmt: skip
def test_a_mesh_that_does_not_cover_the_devices_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes)


def test_every_name_in_the_table_lies_on_an_axis_of_the_mesh_or_none():
    assert {axis for axis in LOGICAL_AXES.values() if axis} <= set(AXES)


def test_one_device_keeps_everything_whole():
    assert _spec(mesh_of(), (3, 3, 512, 512), CONV) == PartitionSpec(None, None, None, None)


@pytest.mark.parametrize("shape, expected", [
    ((3, 3, 128, 256), (None, None, None, "fsdp")),
    ((3, 3, 512, 256), (None, None, "fsdp", None)),
    ((3, 3, 258, 256), (None, None, None, "fsdp")),  # 258 is larger, but 4 does not divide it
    ((3, 3, 129, 257), (None, None, None, None)),
    ((3, 3, 8, 8), (None, None, None, None)),  # below the floor
])  # fmt: skip
def test_fsdp_takes_the_largest_dimension_that_divides_above_a_floor(shape, expected):
    assert (np.prod(shape) >= FSDP_FLOOR) == (shape[-1] > 8)
    assert _spec(mesh_of(fsdp=4), shape, CONV) == PartitionSpec(*expected)


def test_fsdp_leaves_what_tensor_parallelism_has_taken():
    assert _spec(mesh_of(fsdp=2, tensor=2), (3, 3, 128, 256), CONV) == PartitionSpec(None, None, "fsdp", "tensor")


def test_a_dimension_that_tensor_parallelism_does_not_divide_stays_whole():
    assert _spec(mesh_of(tensor=4), (3, 3, 128, 6), CONV) == PartitionSpec(None, None, None, None)


def test_parts_of_a_batch_that_are_fewer_slices_than_devices_are_refused():
    """Then nothing would say how a layer's outputs lie, and each device may hold all of them."""
    with pytest.raises(MeshError, match=r"in 16 parts a batch of 64 slices .* multiple of 128"):
        share_of_batch(mesh_of(data=8), 64, 16)


FOUR_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jaxsr.bench.synthetic import synthetic_variables
from jaxsr.experiment import OptimizerConfig
from jaxsr.methods.condition import Batch
from jaxsr.methods.sr3 import Sr3, Sr3Config
from jaxsr.methods.teacher import Teacher, TeacherConfig
import jaxsr.runtime.mesh as meshes
from jaxsr.train.state import frozen_shardings, init_state, make_optimizer
from jaxsr.train.step import make_step

assert jax.device_count() == 4
meshes.FSDP_FLOOR = 128  # so that networks this small are split
network = dict(width=8, multipliers=(1,), blocks=1, attention_at=(), groups=4, dropout=0.3, middle_attention=False)
sr3 = Sr3(Sr3Config(network=network, prediction="v", residual_std=0.1))
network = dict(channels=1, width=4, multipliers=(1, 1), blocks=1, latent=2, groups=2)
unet = dict(width=8, multipliers=(1,), blocks=1, attention_at=(), heads=2, context_width=6, groups=4)
frozen = dict(autoencoder=dict(network=network), unet=unet, image_encoder=None, guidance=None, lambda_rec=0.5)
teacher = Teacher(TeacherConfig(**frozen))
optimizer = make_optimizer(OptimizerConfig(), 10)
high, error = jax.random.normal(jax.random.key(1), (2, 8, 8, 8, 1))
batch = Batch(high=high, low=high + 0.1 * error)

def split(tree):
    return sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree))

def one_step(method, accumulate, frozen, mesh):
    state, shardings = init_state(method, optimizer, batch, jax.random.key(0), mesh)
    placed = jax.device_put(batch, meshes.batch_sharding(mesh))
    fixed = jax.device_put(frozen, frozen_shardings(method, mesh))
    step = make_step(method, optimizer, ema=0.9, steps=100, accumulate=accumulate)
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, meshes.replicated(mesh)))
    new, metrics = step(state, placed, jax.random.key(2), fixed)
    return jax.device_get(new), jax.device_get(metrics), split(new.params), split(fixed)

axes = (meshes.AxisType.Auto,) * 4
one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), meshes.AXES, axis_types=axes)
for method, accumulate in ((sr3, 2), (teacher, 1)):
    frozen = synthetic_variables(method, batch, 3)["frozen"]
    alone, together = (one_step(method, accumulate, frozen, mesh) for mesh in (one, meshes.make_mesh(data=-1, fsdp=2)))
    assert alone[2:] == (0, 0) and together[2] > 0 and bool(together[3]) == bool(frozen), (alone[2:], together[2:])
    np.testing.assert_allclose(together[1]["loss"], alone[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(together[1]["gradient_norm"], alone[1]["gradient_norm"], rtol=1e-4)
    moments = [[leaf for leaf in jax.tree.leaves(state.opt) if leaf.ndim] for state in (alone[0], together[0])]
    largest = max(np.abs(leaf).max() for leaf in moments[0])
    for a, b in zip(*moments, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * largest)
    print("the same on 1 and on 4:", type(method).__name__)
"""


def test_a_step_on_four_devices_is_the_step_on_one():
    """Weights drawn, dropout, noise, gradients, also through what is frozen: to float32 rounding, with parameters, those of frozen networks
    too, split over `fsdp` and slices over all."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"  # the tests' own: compiling is most of it
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", FOUR_DEVICES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"the same on 1 and on 4: {name}" for name in ("Sr3", "Teacher")]
