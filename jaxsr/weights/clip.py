"""The names of CLIP's vision transformer in published files, and ours.

transformers' CLIPVisionModelWithProjection has a tensor for each of ours. OpenAI's own, which the checkpoints of Zero-1-to-3 hold too, have
queries, keys and values one below the other in one tensor, and the projection as a matrix that is multiplied from the right, as ours.
"""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jaxsr.models.clip import CLIP, VisionTransformer
from jaxsr.weights.file import WeightsError
from jaxsr.weights.names import Piece
from jaxsr.weights.pytorch import layer, norm

HEAD = 64  # channels of a head in every CLIP that was published with these blocks; shapes do not tell it

# Beginnings of what a whole CLIP holds beside its image tower, and of buffers.
LEFT_OF_TRANSFORMERS = ("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids")
LEFT_OF_OPENAI = (
    *("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "logit_scale"),
    *("input_resolution", "context_length", "vocab_size"),
)


def transformers_names(layers: int) -> dict[str, str]:
    """Our names → those of transformers' CLIPVisionModelWithProjection, `layers` blocks deep."""
    tower = "vision_model."
    names = {
        "params/patch/kernel": f"{tower}embeddings.patch_embedding.weight",
        "params/class": f"{tower}embeddings.class_embedding",
        "params/positions": f"{tower}embeddings.position_embedding.weight",
        **norm("params/norm_in", f"{tower}pre_layrnorm"),  # as it is spelt there
        **norm("params/norm_out", f"{tower}post_layernorm"),
        **layer("params/projection", "visual_projection", bias=False),
    }
    parts = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "out": "self_attn.out_proj"}
    for i in range(layers):
        ours, theirs = f"params/block{i}", f"{tower}encoder.layers.{i}"
        for part, name in {**parts, "wide": "mlp.fc1", "narrow": "mlp.fc2"}.items():
            names |= layer(f"{ours}/{part}", f"{theirs}.{name}")
        names |= norm(f"{ours}/norm1", f"{theirs}.layer_norm1") | norm(f"{ours}/norm2", f"{theirs}.layer_norm2")
    return names


def openai_names(layers: int) -> dict[str, str | Piece]:
    """Our names → those of OpenAI's CLIP, `layers` blocks deep."""
    tower = "visual."
    names: dict[str, str | Piece] = {
        "params/patch/kernel": f"{tower}conv1.weight",
        "params/class": f"{tower}class_embedding",
        "params/positions": f"{tower}positional_embedding",
        **norm("params/norm_in", f"{tower}ln_pre"),
        **norm("params/norm_out", f"{tower}ln_post"),
        "params/projection/kernel": Piece(f"{tower}proj", turned=False),
    }
    for i in range(layers):
        ours, theirs = f"params/block{i}", f"{tower}transformer.resblocks.{i}"
        for index, part in enumerate(("query", "key", "value")):
            names[f"{ours}/{part}/kernel"] = Piece(f"{theirs}.attn.in_proj_weight", index, 3)
            names[f"{ours}/{part}/bias"] = Piece(f"{theirs}.attn.in_proj_bias", index, 3)
        for part, name in {"out": "attn.out_proj", "wide": "mlp.c_fc", "narrow": "mlp.c_proj"}.items():
            names |= layer(f"{ours}/{part}", f"{theirs}.{name}")
        names |= norm(f"{ours}/norm1", f"{theirs}.ln_1") | norm(f"{ours}/norm2", f"{theirs}.ln_2")
    return names


def clip_shapes(sizes: Mapping[str, int], side: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the variables of `VisionTransformer(**sizes)` for images of `side` pixels, by name; nothing is allocated."""
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = nn.meta.unbox(jax.eval_shape(VisionTransformer(**sizes).init, jax.random.key(0), image))
    return {name: leaf.shape for name, leaf in flatten_dict(variables, sep="/").items()}


def clip_sizes(patch: tuple[int, ...], positions: tuple[int, ...], layers: int, projection: int) -> dict[str, int]:
    """What `VisionTransformer` is made with, and `side`, of the shapes of the patch's kernel (OIHW) and of the positions.

    Raises:
      WeightsError: where they are no vision transformer's.
    """
    if len(patch) != 4 or len(positions) != 2 or patch[0] % HEAD or (across := math.isqrt(positions[0] - 1)) ** 2 != positions[0] - 1:
        raise WeightsError(
            f"the patch embedding {list(patch)} and the positions {list(positions)} are none of a CLIP vision transformer with heads of {HEAD} "
            f"channels: {', '.join(CLIP)} are supported"
        )
    heads = patch[0] // HEAD
    return {"patch": patch[2], "width": patch[0], "layers": layers, "heads": heads, "projection": projection, "side": across * patch[2]}
