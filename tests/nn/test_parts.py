"""Laws of batches in parts: the same as the whole, in less memory, and on several devices nothing is exchanged for it."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.nn.parts import in_parts
from jaxsr.runtime.memory import program_memory


def wide(x):
    """`[b, n]` → `[b, n]` by way of 300 times as much."""
    return jnp.sin(x[..., None] * jnp.arange(1.0, 301)).cumsum(-1).mean(-1)


@pytest.mark.parametrize("size, part", [(4, 4), (8, 4), (12, 4), (10, 4), (9, 3), (5, 3), (3, 3), (17, 4)])
def test_parts_are_the_whole_and_of_one_size(size, part):
    seen = []

    def function(x):
        seen.append(len(x))
        return wide(x)

    batch = jax.random.normal(jax.random.key(0), (size, 5))
    np.testing.assert_allclose(in_parts(function, batch, 4), wide(batch), rtol=1e-5, atol=1e-6)
    assert set(seen) == {part}


def test_memory_is_that_of_a_part():
    batch = jax.ShapeDtypeStruct((64, 4096), jnp.float32)
    whole, parts = (program_memory(jax.jit(f).lower(batch).compile()) for f in (wide, lambda x: in_parts(wide, x, 8)))
    assert parts < 0.3 * whole


FOUR_DEVICES = """
import jax, numpy as np
from jaxsr.nn.parts import in_parts
from jaxsr.runtime.mesh import batch_sharding, make_mesh
import jax.numpy as jnp

mesh = make_mesh(data=2, fsdp=2)
batch = jax.random.normal(jax.random.key(0), (32, 16))
placed = jax.device_put(batch, batch_sharding(mesh))
sizes = []
def function(x):
    sizes.append(len(x))
    return jnp.sin(x) @ jnp.eye(16)
with jax.set_mesh(mesh):
    program = jax.jit(lambda x: in_parts(function, x, 3), out_shardings=batch_sharding(mesh)).lower(placed).compile()
exchanged = [kind for kind in ("all-gather", "all-to-all", "collective-permute", "all-reduce") if kind in program.as_text()]
np.testing.assert_allclose(program(placed), jnp.sin(batch), rtol=1e-5, atol=1e-6)
print(set(sizes), exchanged)
"""


def test_on_four_devices_each_has_its_slices_of_every_part():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", FOUR_DEVICES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "{12} []"  # eight slices each, in three parts of three
