"""The autoencoder against diffusers' AutoencoderKL with the same weights: forward, and gradients by input and every weight."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxsr.models.autoencoder import LOG_VARIANCE, Decoder, Encoder, Gaussian
from jaxsr.weights.autoencoder import diffusers_names, ldm_names, linear_in_diffusers
from jaxsr.weights.pytorch import from_torch, to_torch

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import AutoencoderKL  # noqa: E402
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint  # noqa: E402
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

CHANNELS, WIDTH, MULTIPLIERS, BLOCKS, LATENT, GROUPS = 3, 16, (1, 2, 4, 4), 2, 4, 8


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
    """Every parameter of ours by its path."""
    image = jax.ShapeDtypeStruct((1, 16, 16, CHANNELS), jnp.float32)
    posterior, encoder = jax.eval_shape(ENCODER.init_with_output, jax.random.key(0), image)
    decoder = jax.eval_shape(DECODER.init, jax.random.key(0), posterior.mode)
    tree = nn.meta.unbox({"encoder": encoder["params"], "decoder": decoder["params"]})
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}


def our_params(half, tensors):
    """{diffusers' name: tensor} → the parameters of our `half`."""
    flat = {ours: from_torch(ours, tensors[NAMES[ours]], shape) for ours, shape in our_shapes().items() if ours.startswith(half)}
    return unflatten_dict(flat, sep="/")[half]


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
    ours = {name: from_torch(name, tensors[NAMES[name]], shape) for name, shape in our_shapes().items()}
    original = {ldm[name]: torch.tensor(to_torch(name, array)) for name, array in ours.items()}
    assert len(original) == len(tensors)
    converted = convert_ldm_vae_checkpoint(original, theirs.config)
    assert converted.keys() == tensors.keys()
    for name, tensor in converted.items():
        np.testing.assert_array_equal(tensor.reshape(tensors[name].shape), tensors[name], err_msg=name)


@pytest.mark.parametrize("old", [False, True])
def test_what_goes_to_diffusers_is_what_came_from_it(theirs, old, tmp_path):
    """Under their names, of now and of before 2023, in a file that they read."""
    names, tensors = diffusers_names(MULTIPLIERS, BLOCKS, old=old), numpy_of(theirs)
    theirs.save_config(tmp_path)
    state = {}
    for ours, shape in our_shapes().items():
        array = to_torch(ours, from_torch(ours, tensors[NAMES[ours]], shape), linear=linear_in_diffusers(ours))
        state[names[ours]] = torch.tensor(np.ascontiguousarray(array))
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    again = AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    for name, array in numpy_of(again).items():
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)


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
