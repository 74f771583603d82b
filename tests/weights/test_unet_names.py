"""Laws of the UNet's names: one for every parameter of any configuration; those of the published files."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxsr.models.unet import LatentUNet
from jaxsr.weights.pytorch import to_torch
from jaxsr.weights.unet import diffusers_names, ldm_names

PREFIX = "model.diffusion_model."


@cache
def shapes_of(network):
    """Every parameter of ours by its path, with 8 channels in and a context of 768 features."""
    x, time, context = (jnp.zeros(shape) for shape in ((1, 16, 16, 8), (1,), (1, 1, 768)))
    tree = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), x, time, context))["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}


@pytest.mark.parametrize("network", [
    LatentUNet(),
    LatentUNet(width=32, multipliers=(1,), blocks=1, attention_at=()),
    LatentUNet(width=32, multipliers=(2, 2, 1), blocks=3, attention_at=(4, 1), depth=2),
    LatentUNet(width=32, multipliers=(1, 2, 3, 4, 5), blocks=1, attention_at=(16,)),
], ids=["published", "one level", "narrower below", "attention at the lowest"])  # fmt: skip
@pytest.mark.parametrize("names", [diffusers_names, ldm_names])
def test_every_parameter_has_one_name_and_none_is_used_twice(network, names):
    found = names(network)
    assert found.keys() == shapes_of(network).keys()
    assert len(set(found.values())) == len(found)


def test_the_original_s_names_are_those_of_stable_diffusion_v1():
    """From ldm's openaimodel.py: 686 arrays, 859,532,484 numbers with a stem of 8 channels."""
    shapes, names = shapes_of(LatentUNet()), ldm_names(LatentUNet())
    theirs = {names[ours].removeprefix(PREFIX): to_torch(ours, np.broadcast_to(np.float32(0), s)).shape for ours, s in shapes.items()}
    assert len(theirs) == 686
    assert sum(np.prod(shape) for shape in theirs.values()) == 859_532_484
    assert {name: theirs[name] for name in KNOWN} == KNOWN
    numbers = lambda way: {int(name.split(".")[1]) for name in theirs if name.startswith(way)}  # noqa: E731
    assert numbers("input_blocks") == numbers("output_blocks") == set(range(12))


KNOWN = {
    "time_embed.0.weight": (1280, 320),
    "time_embed.2.bias": (1280,),
    "input_blocks.0.0.weight": (320, 8, 3, 3),
    "input_blocks.1.0.in_layers.0.weight": (320,),
    "input_blocks.1.0.in_layers.2.weight": (320, 320, 3, 3),
    "input_blocks.1.0.emb_layers.1.weight": (320, 1280),
    "input_blocks.1.1.norm.weight": (320,),
    "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (320, 320),
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0.bias": (320,),
    "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
    "input_blocks.1.1.transformer_blocks.0.ff.net.2.weight": (320, 1280),
    "input_blocks.3.0.op.weight": (320, 320, 3, 3),
    "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
    "input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3),
    "middle_block.0.out_layers.0.bias": (1280,),
    "middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
    "middle_block.2.in_layers.2.weight": (1280, 1280, 3, 3),
    "output_blocks.0.0.in_layers.2.weight": (1280, 2560, 3, 3),
    "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
    "output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
    "output_blocks.8.2.conv.weight": (640, 640, 3, 3),
    "output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
    "output_blocks.11.1.proj_out.weight": (320, 320, 1, 1),
    "out.0.weight": (320,),
    "out.2.weight": (4, 320, 3, 3),
}


def test_names_of_diffusers_are_those_of_its_files():
    names = diffusers_names(LatentUNet())
    assert names["time_in/kernel"] == "time_embedding.linear_1.weight"
    assert names["down0_1_attention/block0/cross/key/kernel"] == "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight"
    assert names["up0_2/embedding/bias"] == "up_blocks.3.resnets.2.time_emb_proj.bias"
    assert names["up1_double/conv/kernel"] == "up_blocks.2.upsamplers.0.conv.weight"
    assert names["norm/scale"] == "conv_norm_out.weight"
