"""Networks side by side on an expert axis compute what they compute one after another. Devices are made of one processor."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.runtime.experts import each
from jaxsr.runtime.mesh import MeshError, make_mesh

FUNCTIONS = [lambda p, x: p[0] * x, lambda p, x: jnp.sin(p[1] * x), lambda p, x: x @ p[2]]

SIDE_BY_SIDE = """
import jax, jax.numpy as jnp, numpy as np
from jaxsr.runtime.experts import each
from jaxsr.runtime.mesh import batch_sharding, make_mesh, replicated

rng = np.random.default_rng(0)
params = [np.float32(1.5), np.float32(0.7), rng.normal(size=(5, 5)).astype(np.float32)]
x, gates = rng.normal(size=(4, 6, 5)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
functions = [lambda p, x: p[0] * x, lambda p, x: jnp.sin(p[1] * x), lambda p, x: x @ p[2]]

def loss(params, x, gates):
    mixed = (gates[:, :, None, None] * each(functions, params, x)).sum(0)
    return jnp.square(mixed).mean(), mixed

function = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
expected = jax.jit(function)(params, x, gates)
for data, fsdp in ((1, 1), (2, 1), (1, 2)):
    mesh = make_mesh(data, fsdp, 1, 3, devices=jax.devices()[: 3 * data * fsdp])
    laid = jax.device_put(params, replicated(mesh)), jax.device_put(x, batch_sharding(mesh)), jax.device_put(gates, replicated(mesh))
    with jax.set_mesh(mesh):
        program = jax.jit(function).lower(*laid).compile()
    assert "conditional" in program.as_text(), "every device would run every expert"
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(program(*laid)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
print("ok")
"""


def test_on_an_expert_axis_they_compute_what_they_compute_alone():
    """Values and gradients, with slices split over other axes too; and each device holds a choice of programs, of which it runs one."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=6",
    }
    done = subprocess.run([sys.executable, "-c", SIDE_BY_SIDE], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr[-2000:]


def test_without_an_axis_they_are_stacked():
    params, x = [jnp.float32(2), jnp.float32(3), jnp.eye(4)], jnp.ones((2, 4))
    np.testing.assert_allclose(each(FUNCTIONS, params, x), np.stack([2 * x, jnp.sin(3 * x), x]), rtol=1e-6)


def test_an_axis_of_another_size_is_refused():
    """A mesh of two cannot be made of one device here, so it stands in for one."""
    mesh = jax.sharding.AbstractMesh((2,), ("expert",))
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(MeshError, match="set it to 3"):
        each(FUNCTIONS, [1.0, 1.0, jnp.eye(2)], jnp.ones((2, 2)))


def test_the_mesh_of_one_device_is_no_axis():
    with jax.set_mesh(make_mesh()):
        made = jax.jit(lambda x: each([lambda p, x: jnp.sin(p * x), lambda p, x: jnp.cos(p * x)], 1.0, x))(jnp.ones(3))
    np.testing.assert_allclose(made, [[np.sin(1)] * 3, [np.cos(1)] * 3], rtol=1e-6)
