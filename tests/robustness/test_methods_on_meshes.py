"""A training step of each paper's method is the same however its parameters and slices lie over devices: data, FSDP, tensor, expert axes.

One step with the optimiser, so that its first moments are the gradients; float32, compared relative to the largest. Devices are made of one
processor. Layers alone: tests/runtime/test_mesh_gradients.py; experts alone: tests/runtime/test_experts.py.
"""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.robustness, pytest.mark.slow]  # a minute each

PROGRAM = """
import sys
import jax, numpy as np
from jaxsr.bench.synthetic import synthetic_batch, synthetic_variables
from jaxsr.config import from_dict
from jaxsr.experiment import Experiment
from jaxsr.methods.condition import Batch
import jaxsr.runtime.mesh as meshes
from jaxsr.train.state import frozen_shardings, init_state, make_optimizer
from jaxsr.train.step import make_step

assert jax.device_count() == 6
meshes.FSDP_FLOOR = 64  # so that networks this small are split
SLICES, SIDE = 12, 16
schedule = {"kind": "linear", "steps": 100, "beta_start": 1e-3, "beta_end": 0.1, "reference_steps": 100}
expert = {"width": 16, "groups": 4, "schedule": {"steps": 50, "beta_start": 1e-4, "beta_end": 2e-2, "rescale": False}}
network = {"width": 16, "multipliers": [1, 2], "blocks": 1, "attention_at": [], "groups": 4, "middle_attention": False}
autoencoder = {"channels": 1, "width": 16, "multipliers": [1, 1], "blocks": 1, "latent": 2, "groups": 4}
unet = {"width": 16, "multipliers": [1, 2], "blocks": 1, "attention_at": [2], "heads": 2, "context_width": 8, "groups": 4}
vqvae = {"width": 8, "multipliers": [1, 2], "blocks": 1, "embedding": 8, "codes": 16, "groups": 4}
encoder = {"patches": [16, 8, 4], "width": 16, "depth": 2, "heads": 2, "condition": 8}
image = lambda channels=1: np.zeros((SLICES, SIDE, SIDE, channels), np.float32)
METHODS = {
    "student": (
        {"kind": "student", "network": network, "stages": {"count": 5}, "schedule": schedule, "sampling_steps": 3},
        Batch(high=None, low=image(), output=image(), mean_map=image(), spread=np.zeros(SLICES, np.float32)),
    ),
    "teacher": (
        {"kind": "teacher", "autoencoder": {"network": autoencoder}, "unet": unet, "image_encoder": None, "guidance": None,
         "lambda_rec": 0.5},
        Batch(high=image(), low=image()),
    ),
    "mixture": (
        {"kind": "moediff", "vqvae": {"network": vqvae}, "encoder": encoder, "perceptual": "none", "stft_windows": [4, 8],
         "experts": dict.fromkeys(("smooth", "cortex", "junction"), expert), "prediction": "v", "sampling_steps": 2},
        Batch(high=image(), low=image(), bias=image(), jacobian=image()),
    ),
}

def one_step(method, batch, frozen, mesh):
    optimizer = make_optimizer(from_dict({"method": {"kind": "sr3"}}, Experiment).optimizer, 10)
    with jax.set_mesh(mesh):
        state, shardings = init_state(method, optimizer, batch, jax.random.key(0), mesh)
        placed = jax.device_put(batch, meshes.batch_sharding(mesh))
        fixed = jax.device_put(frozen, frozen_shardings(method, mesh))
        step = jax.jit(make_step(method, optimizer, ema=0.9, steps=100), out_shardings=(shardings, meshes.replicated(mesh)))
        new, metrics = step(state, placed, jax.random.key(2), fixed)
    split = {axis for leaf in jax.tree.leaves(new.params) for names in leaf.sharding.spec if names
             for axis in ([names] if isinstance(names, str) else names)}
    return jax.device_get(new), jax.device_get(metrics), split

name, *meshes_asked = sys.argv[1:]
raw, shapes = METHODS[name]
data = {"maps": ["bias", "jacobian"]} if name == "mixture" else {}
method = from_dict({"method": raw, "data": data}, Experiment).method.build()
batch = synthetic_batch(shapes, 1)
frozen = synthetic_variables(method, batch, 3)["frozen"]
alone, metrics, split = one_step(method, batch, frozen, meshes.make_mesh(devices=jax.devices()[:1]))
assert not split, split
largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(alone.opt) if leaf.ndim)
assert largest > 1e-4, largest
for asked in meshes_asked:
    sizes = {axis: int(size) for axis, size in (part.split("=") for part in asked.split(","))}
    mesh = meshes.make_mesh(**sizes, devices=jax.devices()[:int(np.prod(list(sizes.values())))])
    together, found, split = one_step(method, batch, frozen, mesh)
    assert {axis for axis in sizes if axis in ("fsdp", "tensor")} <= split, (asked, split)  # experts' parameters lie everywhere
    np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-5, err_msg=asked)
    np.testing.assert_allclose(found["gradient_norm"], metrics["gradient_norm"], rtol=1e-4, err_msg=asked)
    for path, a in jax.tree.leaves_with_path(alone.opt):
        b = together.opt
        for key in path:
            b = b[getattr(key, "idx", getattr(key, "key", None))] if not hasattr(key, "name") else getattr(b, key.name)
        if a.ndim:
            np.testing.assert_allclose(b, a, atol=1e-4 * largest, err_msg=f"{asked} {path}")
    print("the same:", asked)
"""


@pytest.mark.parametrize(
    "method, asked",
    [
        ("student", ["data=2,tensor=2", "fsdp=3"]),
        ("teacher", ["data=2,fsdp=3", "data=3,tensor=2"]),
        ("mixture", ["data=2,expert=3", "fsdp=2,expert=3", "data=2,tensor=2"]),
    ],
)
def test_a_step_of_a_method_on_a_mesh_is_the_step_on_one_device(method, asked):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=6".strip()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", PROGRAM, method, *asked], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"the same: {of}" for of in asked]
