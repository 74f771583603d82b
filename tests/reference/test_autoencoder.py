"""The autoencoder against diffusers' AutoencoderKL with the same weights: forward, and gradients by input and every weight."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxsr.models.autoencoder import LOG_VARIANCE, Decoder, Encoder, Gaussian

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import AutoencoderKL  # noqa: E402
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint  # noqa: E402
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # noqa: E402

CHANNELS, WIDTH, MULTIPLIERS, BLOCKS, LATENT, GROUPS = 3, 16, (1, 2, 4, 4), 2, 4, 8

# ------------------------------------------------------------------------------------------------ names from there to here

_RESNET = {
    "norm1.scale": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "conv1.kernel": "conv1.weight",
    "conv1.bias": "conv1.bias",
    "norm2.scale": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "conv2.kernel": "conv2.weight",
    "conv2.bias": "conv2.bias",
}


def _both(ours, theirs):
    return {f"{ours}.kernel": f"{theirs}.weight", f"{ours}.bias": f"{theirs}.bias"}


def _norm(ours, theirs):
    return {f"{ours}.scale": f"{theirs}.weight", f"{ours}.bias": f"{theirs}.bias"}


def _resnet(ours, theirs, skip):
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in _RESNET.items()} | (_both(f"{ours}.skip", f"{theirs}.{skip}"))


def diffusers_names(multipliers, blocks):
    """Ours → diffusers'. Skips are named for every block; a block that keeps its channels has none."""
    levels = len(multipliers)
    names = {}
    for half in ("encoder", "decoder"):
        names |= (
            _both(f"{half}.stem", f"{half}.conv_in")
            | _both(f"{half}.out", f"{half}.conv_out")
            | _norm(f"{half}.norm", f"{half}.conv_norm_out")
        )
        for i in (0, 1):
            names |= _resnet(f"{half}.middle_{i}", f"{half}.mid_block.resnets.{i}", "conv_shortcut")
        theirs = f"{half}.mid_block.attentions.0"
        names |= _norm(f"{half}.middle_attention.norm", f"{theirs}.group_norm")
        for a, b in {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}.items():
            names |= _both(f"{half}.middle_attention.{a}", f"{theirs}.{b}")
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        for i in range(blocks):
            names |= _resnet(f"encoder.down{level}_{i}", f"{down}.resnets.{i}", "conv_shortcut")
        for i in range(blocks + 1):
            names |= _resnet(f"decoder.up{level}_{i}", f"{up}.resnets.{i}", "conv_shortcut")
        names |= _both(f"encoder.down{level}_half.conv", f"{down}.downsamplers.0.conv")
        names |= _both(f"decoder.up{level}_double.conv", f"{up}.upsamplers.0.conv")
    return names | _both("encoder.moments", "quant_conv") | _both("decoder.latent", "post_quant_conv")


def ldm_names(multipliers, blocks):
    """Ours → those of the original checkpoints (Stable Diffusion v1, Zero-1-to-3, without 'first_stage_model.')."""
    names = {}
    for half in ("encoder", "decoder"):
        names |= (
            _both(f"{half}.stem", f"{half}.conv_in") | _both(f"{half}.out", f"{half}.conv_out") | _norm(f"{half}.norm", f"{half}.norm_out")
        )
        for i in (0, 1):
            names |= _resnet(f"{half}.middle_{i}", f"{half}.mid.block_{i + 1}", "nin_shortcut")
        names |= _norm(f"{half}.middle_attention.norm", f"{half}.mid.attn_1.norm")
        for a, b in {"query": "q", "key": "k", "value": "v", "out": "proj_out"}.items():
            names |= _both(f"{half}.middle_attention.{a}", f"{half}.mid.attn_1.{b}")
    for level in range(len(multipliers)):
        for i in range(blocks):
            names |= _resnet(f"encoder.down{level}_{i}", f"encoder.down.{level}.block.{i}", "nin_shortcut")
        for i in range(blocks + 1):
            names |= _resnet(f"decoder.up{level}_{i}", f"decoder.up.{level}.block.{i}", "nin_shortcut")
        names |= _both(f"encoder.down{level}_half.conv", f"encoder.down.{level}.downsample.conv")
        names |= _both(f"decoder.up{level}_double.conv", f"decoder.up.{level}.upsample.conv")
    return names | _both("encoder.moments", "quant_conv") | _both("decoder.latent", "post_quant_conv")


def to_ours(array):
    """OIHW → HWIO; a linear layer OI → a 1 × 1 convolution."""
    match array.ndim:
        case 4:
            return array.transpose(2, 3, 1, 0)
        case 2:
            return array.T[None, None]
    return array


def to_ldm(array):
    """HWIO → OIHW."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


# ------------------------------------------------------------------------------------------------ the two networks


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    model = AutoencoderKL(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(MULTIPLIERS),
        up_block_types=("UpDecoderBlock2D",) * len(MULTIPLIERS),
        block_out_channels=tuple(WIDTH * m for m in MULTIPLIERS),
        layers_per_block=BLOCKS,
        latent_channels=LATENT,
        norm_num_groups=GROUPS,
    )
    for parameter in model.parameters():  # norms start at one and zero, which would hide a swap
        parameter.data = torch.randn_like(parameter) * (0.8 / np.sqrt(max(1, parameter[0].numel())))
    return model


ENCODER = Encoder(width=WIDTH, multipliers=MULTIPLIERS, blocks=BLOCKS, latent=LATENT, groups=GROUPS)
DECODER = Decoder(channels=CHANNELS, width=WIDTH, multipliers=MULTIPLIERS, blocks=BLOCKS, groups=GROUPS)
NAMES = diffusers_names(MULTIPLIERS, BLOCKS)


def our_shapes():
    """Every parameter of ours by its dotted name."""
    image = jax.ShapeDtypeStruct((1, 16, 16, CHANNELS), jnp.float32)
    posterior, encoder = jax.eval_shape(ENCODER.init_with_output, jax.random.key(0), image)
    decoder = jax.eval_shape(DECODER.init, jax.random.key(0), posterior.mode)
    tree = nn.meta.unbox({"encoder": encoder["params"], "decoder": decoder["params"]})
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep=".").items()}


def our_params(half, tensors):
    """{diffusers' name: tensor} → the parameters of our `half`."""
    tree = {}
    for ours in (name for name in our_shapes() if name.startswith(half)):
        *path, leaf = ours.split(".")[1:]
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = to_ours(tensors[NAMES[ours]])
    return tree


def numpy_of(model, gradients=False):
    return {
        name: (p.grad if gradients else p).detach().numpy() for name, p in model.named_parameters() if not gradients or p.grad is not None
    }


def image(height, width, channels, batch=2, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, height, width, channels)).astype(np.float32)


def nchw(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2), requires_grad=True)


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def assert_close(ours, theirs):
    """Relative to the largest entry: 1e-4, in float32."""
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=1e-4)


def moments(posterior):
    return jnp.concatenate(posterior, axis=-1)


def assert_same_function(theirs, half, their_function, our_function, x):
    """The same output, and the same gradients of Σ c · output (c fixed, random) by the input and every weight."""
    theirs.zero_grad()
    their_x = nchw(x)
    their_output = their_function(their_x)
    c = image(*nhwc(their_output).shape[1:], batch=len(x), seed=1)
    (their_output * torch.tensor(c.transpose(0, 3, 1, 2))).sum().backward()

    @jax.jit
    def run(params, x):
        def total(params, x):
            output = our_function({"params": params}, x)
            return (output * c).sum(), output

        (_, output), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(params, x)
        return output, gradients

    output, (by_params, by_x) = run(our_params(half, numpy_of(theirs)), x)
    assert_close(output, nhwc(their_output))
    assert_close(by_x, nhwc(their_x.grad))
    expected = our_params(half, numpy_of(theirs, gradients=True))
    # Softmax does not see a bias of the keys: its gradient is nothing but rounding, on either side.
    attention = expected["middle_attention"]
    for gradients in (by_params, expected):
        assert np.abs(gradients["middle_attention"]["key"].pop("bias")).max() < 1e-4 * np.abs(attention["key"]["kernel"]).max()
    jax.tree.map(assert_close, by_params, expected)


@pytest.mark.parametrize("height, width", [(64, 64), (32, 56)])
def test_encoding_is_diffusers(theirs, height, width):
    def their_moments(x):
        return theirs.encode(x).latent_dist.parameters

    assert_same_function(theirs, "encoder", their_moments, lambda v, x: moments(ENCODER.apply(v, x)), image(height, width, CHANNELS))


@pytest.mark.parametrize("height, width", [(8, 8), (4, 7)])
def test_decoding_is_diffusers(theirs, height, width):
    assert_same_function(theirs, "decoder", lambda z: theirs.decode(z).sample, DECODER.apply, image(height, width, LATENT))


def test_every_parameter_of_theirs_is_one_of_ours_and_the_other_way_round(theirs):
    used = [NAMES[name] for name in our_shapes()]
    assert sorted(used) == sorted(name for name, _ in theirs.named_parameters())


def test_the_original_s_names_are_those_that_diffusers_converts_to_its_own(theirs):
    """diffusers reads original checkpoints by a table of its own: through it, our two tables are one."""
    ldm, tensors = ldm_names(MULTIPLIERS, BLOCKS), numpy_of(theirs)
    original = {ldm[name]: torch.tensor(to_ldm(to_ours(tensors[NAMES[name]]))) for name in our_shapes()}
    assert len(original) == len(tensors)
    converted = convert_ldm_vae_checkpoint({f"first_stage_model.{name}": tensor for name, tensor in original.items()}, theirs.config)
    assert converted.keys() == tensors.keys()
    for name, tensor in converted.items():
        np.testing.assert_array_equal(tensor.reshape(tensors[name].shape), tensors[name], err_msg=name)


def test_the_posterior_is_diffusers(theirs):
    """Mode, deviation, divergence, and the clamp of the log-variance, which these moments reach."""
    raw = 20 * image(4, 6, 2 * LATENT)
    expected = DiagonalGaussianDistribution(torch.tensor(raw.transpose(0, 3, 1, 2)))
    mean, log_variance = np.split(raw, 2, axis=-1)
    ours = Gaussian(jnp.asarray(mean), jnp.clip(log_variance, *LOG_VARIANCE))
    np.testing.assert_array_equal(ours.mode, nhwc(expected.mode()))
    np.testing.assert_allclose(jnp.exp(ours.log_variance / 2), nhwc(expected.std), rtol=1e-5)
    np.testing.assert_allclose(ours.kl(), expected.kl().numpy(), rtol=1e-5)
    assert (np.abs(ours.log_variance) < np.abs(log_variance)).any()
