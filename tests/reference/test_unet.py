"""The latent UNet against diffusers' UNet2DConditionModel with the same weights: forward, and gradients by inputs and every weight.

The configuration is Stable Diffusion v1's but for its sizes: `attention_head_dim` is the number of heads there, as in its own.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxsr.models.unet import LatentUNet
from jaxsr.weights.pytorch import from_torch, to_torch
from jaxsr.weights.unet import LDM_PREFIX, diffusers_names, ldm_names

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import UNet2DConditionModel  # noqa: E402
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint  # noqa: E402

IN, CONTEXT, GROUPS = 8, 12, 4
NETWORK = LatentUNet(channels=4, width=8, multipliers=(1, 2, 4, 4), blocks=2, attention_at=(1, 2, 4), heads=2, groups=GROUPS)
REAL = LatentUNet()


def their_network(network, in_channels, context, groups):
    attends = [2**level in network.attention_at for level in range(len(network.multipliers))]
    return UNet2DConditionModel(
        in_channels=in_channels,
        out_channels=network.channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        block_out_channels=tuple(network.width * m for m in network.multipliers),
        layers_per_block=network.blocks,
        cross_attention_dim=context,
        attention_head_dim=network.heads,
        transformer_layers_per_block=network.depth,
        norm_num_groups=groups,
    )


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    model = their_network(NETWORK, IN, CONTEXT, GROUPS)
    for parameter in model.parameters():  # norms start at one and zero, which would hide a swap
        parameter.data = torch.randn_like(parameter) * (0.8 / np.sqrt(max(1, parameter[0].numel())))
    return model


def our_shapes(network, channels, context):
    """Every parameter of ours by its path."""
    factor = 2 ** (len(network.multipliers) - 1)
    inputs = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, factor, factor, channels), (1,), (1, 1, context))]
    tree = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), *inputs))["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}


def our_params(tensors):
    """{diffusers' name: array} → our parameters."""
    names = diffusers_names(NETWORK)
    flat = {ours: from_torch(ours, tensors[names[ours]], shape) for ours, shape in our_shapes(NETWORK, IN, CONTEXT).items()}
    return unflatten_dict(flat, sep="/")


def arrays_of(model, gradients=False):
    return {name: (p.grad if gradients else p).detach().numpy() for name, p in model.named_parameters()}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nchw(x):
    return torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def assert_close(ours, theirs, name="", largest=None):
    """Relative to the largest entry: 1e-4, in float32."""
    atol = 1e-4 * (np.abs(theirs).max() if largest is None else largest)
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-4, err_msg=name)


def one_scale(name):
    """Whose gradients are of one scale: an attention's four layers together. Those by its queries and keys are what is left of larger terms
    that cancel in the softmax, and theirs lie as far as ours from the same in float64, up to 3e-4 of their own size."""
    return name.rsplit("/", 2)[0] if "/self/" in name or "/cross/" in name else name


def test_values_and_gradients_are_diffusers(theirs):
    """Gradients of Σ c · output, c fixed and random."""
    height, width, tokens = 8, 24, 5
    x, context, c = random(2, height, width, IN), random(2, tokens, CONTEXT, seed=1), random(2, height, width, 4, seed=2)
    time = np.array([3.0, 871.25], np.float32)
    theirs.zero_grad()
    their_x, their_context = nchw(x), torch.tensor(context, requires_grad=True)
    their_output = theirs(their_x, torch.tensor(time), their_context).sample
    (their_output * torch.tensor(c.transpose(0, 3, 1, 2))).sum().backward()

    @jax.jit
    def run(params, x, context):
        def total(params, x, context):
            output = NETWORK.apply({"params": params}, x, time, context)
            return (output * c).sum(), output

        (_, output), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(params, x, context)
        return output, gradients

    output, (by_params, by_x, by_context) = run(our_params(arrays_of(theirs)), x, context)
    assert_close(output, nhwc(their_output))
    assert_close(by_x, nhwc(their_x.grad))
    assert_close(by_context, their_context.grad.numpy())
    by_params, expected = (flatten_dict(p, sep="/") for p in (by_params, our_params(arrays_of(theirs, gradients=True))))
    largest = {}
    for name, gradient in expected.items():
        largest[one_scale(name)] = max(largest.get(one_scale(name), 0), np.abs(gradient).max())
    for name, gradient in expected.items():
        assert_close(by_params[name], gradient, name, largest[one_scale(name)])


def test_every_parameter_of_theirs_is_one_of_ours_and_the_other_way_round(theirs):
    names = diffusers_names(NETWORK)
    assert names.keys() == our_shapes(NETWORK, IN, CONTEXT).keys()
    assert sorted(names.values()) == sorted(name for name, _ in theirs.named_parameters())


def test_at_the_published_size_every_name_and_shape_is_diffusers():
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in their_network(REAL, 8, 768, 32).named_parameters()}
    names = diffusers_names(REAL)
    ours = {names[path]: to_torch(path, np.broadcast_to(np.float32(0), shape)).shape for path, shape in our_shapes(REAL, 8, 768).items()}
    assert ours == expected


@pytest.mark.parametrize("network, channels, context", [(NETWORK, IN, CONTEXT), (REAL, 8, 768)], ids=["small", "published"])
def test_the_original_s_names_are_those_that_diffusers_converts_to_its_own(network, channels, context):
    """diffusers reads original checkpoints by a table of its own: through it, our two tables are one."""
    diffusers, ldm = diffusers_names(network), ldm_names(network)
    assert len(set(ldm.values())) == len(ldm) == len(diffusers)
    state = {theirs: torch.tensor(float(k)) for k, theirs in enumerate(ldm.values())}
    converted = convert_ldm_unet_checkpoint(state, {"layers_per_block": network.blocks})
    assert {name: int(tensor) for name, tensor in converted.items()} == {diffusers[ours]: k for k, ours in enumerate(ldm)}
    assert all(name.startswith(LDM_PREFIX) for name in state)


# Where what comes out is made a thousand times fainter, so that the norms after it are near the square root of their epsilons.
FAINT = ["stem", "down0_0/conv2", "down0_0_attention/in", "up0_2/conv2", "up0_2/skip", "up0_2_attention/out"]


@pytest.mark.parametrize("faint", [False, True])
def test_what_goes_to_diffusers_computes_there_what_it_does_here(faint):
    """A round trip: our parameters under their names in their network, the same output; each norm has the epsilon that it has there."""
    names, rng = diffusers_names(NETWORK), np.random.default_rng(5)
    flat = {}
    for ours, shape in our_shapes(NETWORK, IN, CONTEXT).items():
        scale = 1e-3 if faint and ours.rpartition("/")[0] in FAINT else 1
        flat[ours] = (scale * rng.normal(size=shape) * 0.8 / np.sqrt(max(1, np.prod(shape[:-1])))).astype(np.float32)
    model = their_network(NETWORK, IN, CONTEXT, GROUPS)
    model.load_state_dict({names[ours]: torch.tensor(to_torch(ours, array)) for ours, array in flat.items()})
    x, context, time = random(2, 16, 16, IN), random(2, 1, CONTEXT, seed=1), np.array([0.0, 999.0], np.float32)
    with torch.no_grad():
        expected = nhwc(model(nchw(x), torch.tensor(time), torch.tensor(context)).sample)
    assert_close(jax.jit(NETWORK.apply)({"params": unflatten_dict(flat, sep="/")}, x, time, context), expected)
