"""The names of CLIP's vision transformer in published files, and ours.

transformers' CLIPVisionModelWithProjection has a tensor for each of ours. OpenAI's own, which the checkpoints of Zero-1-to-3 hold too, have
queries, keys and values one below the other in one tensor, and the projection as a matrix that is multiplied from the right, as ours.
"""

from jaxsr.weights.names import Piece
from jaxsr.weights.pytorch import layer, norm

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
        "patch/kernel": f"{tower}embeddings.patch_embedding.weight",
        "class": f"{tower}embeddings.class_embedding",
        "positions": f"{tower}embeddings.position_embedding.weight",
        **norm("norm_in", f"{tower}pre_layrnorm"),  # as it is spelt there
        **norm("norm_out", f"{tower}post_layernorm"),
        **layer("projection", "visual_projection", bias=False),
    }
    parts = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "out": "self_attn.out_proj"}
    for i in range(layers):
        ours, theirs = f"block{i}", f"{tower}encoder.layers.{i}"
        for part, name in {**parts, "wide": "mlp.fc1", "narrow": "mlp.fc2"}.items():
            names |= layer(f"{ours}/{part}", f"{theirs}.{name}")
        names |= norm(f"{ours}/norm1", f"{theirs}.layer_norm1") | norm(f"{ours}/norm2", f"{theirs}.layer_norm2")
    return names


def openai_names(layers: int) -> dict[str, str | Piece]:
    """Our names → those of OpenAI's CLIP, `layers` blocks deep."""
    tower = "visual."
    names: dict[str, str | Piece] = {
        "patch/kernel": f"{tower}conv1.weight",
        "class": f"{tower}class_embedding",
        "positions": f"{tower}positional_embedding",
        **norm("norm_in", f"{tower}ln_pre"),
        **norm("norm_out", f"{tower}ln_post"),
        "projection/kernel": Piece(f"{tower}proj", turned=False),
    }
    for i in range(layers):
        ours, theirs = f"block{i}", f"{tower}transformer.resblocks.{i}"
        for index, part in enumerate(("query", "key", "value")):
            names[f"{ours}/{part}/kernel"] = Piece(f"{theirs}.attn.in_proj_weight", index, 3)
            names[f"{ours}/{part}/bias"] = Piece(f"{theirs}.attn.in_proj_bias", index, 3)
        for part, name in {"out": "attn.out_proj", "wide": "mlp.c_fc", "narrow": "mlp.c_proj"}.items():
            names |= layer(f"{ours}/{part}", f"{theirs}.{name}")
        names |= norm(f"{ours}/norm1", f"{theirs}.ln_1") | norm(f"{ours}/norm2", f"{theirs}.ln_2")
    return names
