"""What training holds of networks that it does not change: on the devices what the loss computes with, on the host nothing."""

import json
import weakref

import jax
import jax.numpy as jnp
import pytest

from jaxsr.bench.synthetic import synthetic_set, synthetic_variables
from jaxsr.config import from_dict
from jaxsr.experiment import Experiment
from jaxsr.runtime.mesh import make_mesh
from jaxsr.train import loop
from jaxsr.train.build import abstract_batch, build_method
from jaxsr.train.frozen import load_needed
from jaxsr.train.state import abstract_state
from jaxsr.upscale.export import export_model
from jaxsr.upscale.model import Model
from jaxsr.weights.file import digest

NETWORK = {"channels": 1, "width": 4, "multipliers": [1, 1], "blocks": 1, "latent": 2, "groups": 2}
UNET = {"width": 4, "multipliers": [1], "blocks": 1, "attention_at": [], "heads": 1, "context_width": 2, "groups": 2}
DATA = {"crop": 8, "threads": 0}


@pytest.fixture
def teacher(tmp_path):
    """An experiment in bfloat16, its autoencoder an exported file."""
    source = from_dict({"method": {"kind": "autoencoder", "network": NETWORK}, "data": DATA}, Experiment)
    method = build_method(source)
    params = synthetic_variables(method, abstract_batch(source), 0)["params"]
    model = Model("autoencoder", 1, source, method, {"params": params, "stats": {}, "frozen": {}}, digest(params))
    export_model(model, tmp_path / "autoencoder.safetensors")
    method = {"kind": "teacher", "autoencoder": {"network": NETWORK}, "unet": UNET, "image_encoder": None, "guidance": None}
    method |= {"sampling_steps": 1, "weights": {"autoencoder": str(tmp_path / "autoencoder.safetensors")}}
    synthetic_set(tmp_path / "set", 1, side=8, slices=3)
    data = {**DATA, "manifest": str(tmp_path / "set")}
    return from_dict({"method": method, "data": data, "train": {"steps": 1, "batch_size": 1}, "precision": "bf16"}, Experiment)


def test_in_bfloat16_it_computes_with_half_the_bytes_and_the_copies_of_the_host_are_gone(teacher, tmp_path, monkeypatch):
    """The SHA-256 is that of what was trained, in float32."""
    loaded, seen = [], {}

    def load(*given):
        frozen = load_needed(*given)
        loaded.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(frozen.variables) if leaf.ndim == 4 and leaf.shape[-1] == 4)
        seen["sha256"] = digest(frozen.variables["autoencoder"])
        return frozen

    def make_step(*_, **__):
        def step(state, batch, root, frozen):
            seen["dtype"] = frozen["autoencoder"]["encoder"]["stem"]["kernel"].dtype
            return state._replace(step=state.step + 1), {"loss": jnp.zeros(())}

        return step

    def new_state(method, optimizer, batch, key, shardings):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_state(method, optimizer, batch, make_mesh()))

    monkeypatch.setattr(loop, "new_state", new_state)
    monkeypatch.setattr(loop, "load_needed", load)
    monkeypatch.setattr(loop, "make_step", make_step)
    loop.train(teacher, tmp_path / "run", report=lambda *_: seen.update(alive=[ref for ref in loaded if ref() is not None]))
    assert loaded
    assert (seen["dtype"], seen["alive"]) == (jnp.bfloat16, [])
    saved = json.loads((tmp_path / "run/checkpoints/1/about/metadata").read_text())
    assert saved["frozen"] == {"autoencoder": seen["sha256"]}
