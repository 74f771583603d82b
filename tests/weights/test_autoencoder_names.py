"""Laws of the autoencoder's names: one for every parameter of any configuration; those of the published files."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxsr.models.autoencoder import Decoder, Encoder
from jaxsr.weights.autoencoder import diffusers_names, ldm_names, linear_in_diffusers
from jaxsr.weights.pytorch import to_torch

PUBLISHED = {"multipliers": (1, 2, 4, 4), "blocks": 2}
PREFIX = "first_stage_model."


def shapes_of(**network):
    posterior, encoder = jax.eval_shape(Encoder(**network).init_with_output, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    decoder = jax.eval_shape(Decoder(**network).init, jax.random.key(0), posterior.mode)
    tree = nn.meta.unbox({"encoder": encoder["params"], "decoder": decoder["params"]})
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}


def old_diffusers_names(multipliers, blocks):
    return diffusers_names(multipliers, blocks, old=True)


@pytest.mark.parametrize("network", [
    PUBLISHED, {"multipliers": (1,), "blocks": 1}, {"multipliers": (2, 2, 1), "blocks": 3}, {"multipliers": (1, 2, 3, 4), "blocks": 1},
], ids=["published", "one level", "narrower below", "wider at each level"])  # fmt: skip
@pytest.mark.parametrize("names", [diffusers_names, old_diffusers_names, ldm_names])
def test_every_parameter_has_one_name_and_none_is_used_twice(network, names):
    found = names(**network)
    assert found.keys() == shapes_of(**network, width=32).keys()
    assert len(set(found.values())) == len(found)


def test_the_original_s_names_are_those_of_stable_diffusion_v1():
    """From ldm's model.py: 248 arrays, 83,653,863 numbers."""
    shapes, names = shapes_of(**PUBLISHED), ldm_names(**PUBLISHED)
    theirs = {names[ours].removeprefix(PREFIX): to_torch(ours, np.broadcast_to(np.float32(0), s)).shape for ours, s in shapes.items()}
    assert len(theirs) == 248
    assert sum(np.prod(shape) for shape in theirs.values()) == 83_653_863
    known = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.0.block.0.norm1.weight": (128,),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
        "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "encoder.norm_out.bias": (512,),
        "encoder.conv_out.weight": (8, 512, 3, 3),
        "quant_conv.weight": (8, 8, 1, 1),
        "post_quant_conv.weight": (4, 4, 1, 1),
        "decoder.mid.block_2.conv2.bias": (512,),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }
    assert {name: theirs[name] for name in known} == known


def test_old_and_new_names_of_diffusers_differ_in_the_attention_alone():
    """From diffusers' table for files of before: query, key, value and proj_attn became to_q, to_k, to_v and to_out.0."""
    new, old = diffusers_names(**PUBLISHED), diffusers_names(**PUBLISHED, old=True)
    assert {ours for ours in new if new[ours] != old[ours]} == {ours for ours in new if linear_in_diffusers(ours)}
    assert old["decoder/middle_attention/out/kernel"] == "decoder.mid_block.attentions.0.proj_attn.weight"
    assert new["decoder/middle_attention/out/kernel"] == "decoder.mid_block.attentions.0.to_out.0.weight"
