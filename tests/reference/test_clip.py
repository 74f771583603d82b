"""CLIP's vision transformer against transformers' with the same weights: forward, and gradients by image and weights; names; images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxsr.models.clip import MEAN, SIDE, STD, VisionTransformer, clip_image
from jaxsr.weights.clip import openai_names, transformers_names
from jaxsr.weights.deduced import clip_shapes
from jaxsr.weights.names import take

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"patch": 4, "width": 24, "layers": 3, "heads": 3, "projection": 10}
IMAGE = 20
NETWORK = VisionTransformer(**SIZES)


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    model = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=SIZES["width"],
            intermediate_size=4 * SIZES["width"],
            projection_dim=SIZES["projection"],
            num_hidden_layers=SIZES["layers"],
            num_attention_heads=SIZES["heads"],
            image_size=IMAGE,
            patch_size=SIZES["patch"],
            attn_implementation="eager",
        )
    )
    for parameter in model.parameters():  # norms start at one and zero, which would hide a swap
        parameter.data = torch.randn_like(parameter) * (0.8 / np.sqrt(max(1, parameter[0].numel())))
    for parameter in model.vision_model.embeddings.parameters():  # so small that the norm's ε counts
        parameter.data *= 0.03
    return model.eval()


def ours(arrays):
    """{transformers' name: array} → our parameters."""
    shapes = clip_shapes(SIZES | {"side": IMAGE})
    taken = take(arrays, transformers_names(SIZES["layers"]), shapes, "test").arrays
    return unflatten_dict(taken, sep="/")


def image(seed=0):
    return np.random.default_rng(seed).normal(size=(2, IMAGE, IMAGE, 3)).astype(np.float32)


def assert_close(ours, theirs):
    """Relative to the largest entry: 1e-4, in float32."""
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=1e-4)


@pytest.mark.parametrize("which", ["tokens", "pooled"])
def test_outputs_and_gradients_are_those_of_transformers(theirs, which):
    """The same output, and the same gradients of Σ c · output (c fixed, random) by the image and every weight."""
    x = image()
    theirs.zero_grad()
    their_x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    out = theirs(pixel_values=their_x)
    their_output = {"tokens": out.last_hidden_state, "pooled": out.image_embeds}[which]
    c = np.random.default_rng(1).normal(size=their_output.shape).astype(np.float32)
    (their_output * torch.tensor(c)).sum().backward()

    def total(params, x):
        output = getattr(NETWORK.apply({"params": params}, x), which)
        return (output * c).sum(), output

    params = ours({name: p.detach().numpy() for name, p in theirs.named_parameters()})
    (_, output), (by_params, by_x) = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(params, jnp.asarray(x))
    assert_close(output, their_output.detach().numpy())
    assert_close(by_x, their_x.grad.numpy().transpose(0, 2, 3, 1))
    expected = ours({n: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy() for n, p in theirs.named_parameters()})
    for layer in range(SIZES["layers"]):  # softmax does not see a bias of the keys: its gradient is nothing but rounding, on either side
        block = expected[f"block{layer}"]
        for gradients in (by_params, expected):
            assert np.abs(gradients[f"block{layer}"]["key"].pop("bias")).max() <= 1e-4 * np.abs(block["key"]["kernel"]).max()
    jax.tree.map(assert_close, by_params, expected)


def test_every_parameter_of_theirs_is_one_of_ours_and_the_other_way_round(theirs):
    names = transformers_names(SIZES["layers"])
    assert names.keys() == clip_shapes(SIZES | {"side": IMAGE}).keys()
    assert sorted(names.values()) == sorted(name for name, _ in theirs.named_parameters())


def test_openai_s_names_hold_the_same_network_with_queries_keys_and_values_in_one(theirs):
    """Through transformers' own state, renamed and fused as in OpenAI's code, the same parameters come out."""
    state = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    names = transformers_names(SIZES["layers"])
    fused: dict[str, list] = {}
    for our_name, piece in openai_names(SIZES["layers"]).items():
        array = state[names[our_name]]
        fused.setdefault(piece if isinstance(piece, str) else piece.name, []).append((getattr(piece, "part", 0), array))
    original = {name: np.concatenate([array for _, array in sorted(parts, key=lambda part: part[0])]) for name, parts in fused.items()}
    original["visual.proj"] = original["visual.proj"].T  # `x @ self.proj`
    taken = take(original, openai_names(SIZES["layers"]), clip_shapes(SIZES | {"side": IMAGE}), "test").arrays
    expected = flatten_dict(ours(state), sep="/")
    assert taken.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(taken[name], array, err_msg=name)


@pytest.mark.parametrize("side", [96, 256])
def test_images_are_those_of_torch_s_bicubic_with_antialias(side):
    """a = −½ there too; without antialias torch has a = −¾ and skips pixels when it shrinks."""
    x = np.random.default_rng(0).uniform(-1, 1, (1, side, side, 1)).astype(np.float32)
    grey = torch.tensor((x.transpose(0, 3, 1, 2) + 1) / 2)
    resize = functools.partial(torch.nn.functional.interpolate, grey, (SIDE, SIDE), mode="bicubic")
    expected, other = (resize(antialias=wide).clamp(0, 1).numpy()[0, 0] for wide in (True, False))
    seen = (np.asarray(clip_image(x)) * np.array(STD) + np.array(MEAN))[0, ..., 0]
    np.testing.assert_allclose(seen, expected, atol=5e-5)
    assert np.abs(seen - other).max() > 0.01
