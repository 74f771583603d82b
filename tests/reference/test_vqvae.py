"""The VQ-VAE against diffusers' VQModel with the same weights, and its codebook against MONAI's EMAQuantizer: forward, and gradients.

MONAI counts vectors where we have shares of them: its counts are ours times the vectors of a batch, and so is its ε, of ours as the share
of a code. Both are given the same batch after the same past.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxsr.losses.pixels import mean_squared_error
from jaxsr.models.autoencoder import Decoder
from jaxsr.models.vqvae import SMOOTHING, Codebook, VqEncoder, codes, perplexity, quantise, straight_through, updated
from jaxsr.weights.autoencoder import diffusers_names
from jaxsr.weights.pytorch import from_torch

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")

IN, OUT, WIDTH, MULTIPLIERS, BLOCKS, D, K, GROUPS = 3, 1, 16, (1, 2, 4, 4), 2, 12, 9, 8
ENCODER = VqEncoder(width=WIDTH, multipliers=MULTIPLIERS, blocks=BLOCKS, embedding=D, groups=GROUPS)
DECODER = Decoder(channels=OUT, width=WIDTH, multipliers=MULTIPLIERS, blocks=BLOCKS, groups=GROUPS)
NAMES = {ours.replace("encoder/moments", "encoder/quantise"): theirs for ours, theirs in diffusers_names(MULTIPLIERS, BLOCKS).items()}
DECAY, COMMITMENT = 0.9, 0.25


def codebook():
    rng = np.random.default_rng(2)
    usage = rng.dirichlet(np.ones(K)).astype(np.float32)
    return Codebook(jnp.asarray(usage), jnp.asarray(usage[:, None] * rng.normal(size=(K, D)), jnp.float32))


@pytest.fixture(scope="module")
def vq_model():
    VQModel = pytest.importorskip("diffusers").VQModel
    torch.manual_seed(0)
    model = VQModel(
        in_channels=IN,
        out_channels=OUT,
        down_block_types=("DownEncoderBlock2D",) * len(MULTIPLIERS),
        up_block_types=("UpDecoderBlock2D",) * len(MULTIPLIERS),
        block_out_channels=tuple(WIDTH * m for m in MULTIPLIERS),
        layers_per_block=BLOCKS,
        latent_channels=D,
        num_vq_embeddings=K,
        norm_num_groups=GROUPS,
    )
    for parameter in model.parameters():  # norms start at one and zero, which would hide a swap
        parameter.data = torch.randn_like(parameter) * (0.8 / np.sqrt(max(1, parameter[0].numel())))
    model.quantize.embedding.weight.data = torch.tensor(np.asarray(codes(codebook())))
    return model


@pytest.fixture(scope="module")
def ema_quantizer():
    layers = pytest.importorskip("monai.networks.layers.vector_quantizer")

    def made(vectors):
        """With the past of `codebook`, for batches of that many `vectors`."""
        module = layers.EMAQuantizer(2, K, D, commitment_cost=COMMITMENT, decay=DECAY, epsilon=SMOOTHING * vectors / K, ddp_sync=False)
        usage, sums = (torch.tensor(np.asarray(x)) for x in codebook())
        module.ema_cluster_size, module.ema_w = usage * vectors, sums * vectors
        module.embedding.weight.data = torch.tensor(np.asarray(codes(codebook())))
        return layers.VectorQuantizer(module)

    return made


def our_shapes():
    z, encoder = jax.eval_shape(ENCODER.init_with_output, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 16, IN), jnp.float32))
    decoder = jax.eval_shape(DECODER.init, jax.random.key(0), z)
    tree = nn.meta.unbox({"encoder": encoder["params"], "decoder": decoder["params"]})
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}


def our_params(half, tensors):
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


def assert_same_function(model, half, their_function, our_function, x):
    """The same output, and the same gradients of Σ c · output (c fixed, random) by the input and every weight."""
    model.zero_grad()
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

    output, (by_params, by_x) = run(our_params(half, numpy_of(model)), x)
    assert_close(output, nhwc(their_output))
    assert_close(by_x, nhwc(their_x.grad))
    expected = our_params(half, numpy_of(model, gradients=True))
    # Softmax does not see a bias of the keys: its gradient is nothing but rounding, on either side.
    attention = expected["middle_attention"]
    for gradients in (by_params, expected):
        assert np.abs(gradients["middle_attention"]["key"].pop("bias")).max() < 1e-4 * np.abs(attention["key"]["kernel"]).max()
    jax.tree.map(assert_close, by_params, expected)


def test_encoding_is_diffusers(vq_model):
    assert_same_function(vq_model, "encoder", lambda x: vq_model.encode(x).latents, ENCODER.apply, image(32, 56, IN))


def test_decoding_with_the_nearest_codes_is_diffusers_and_the_gradient_passes_straight_through(vq_model):
    def decode(variables, z):
        z_q, _ = quantise(z, codebook())
        return DECODER.apply(variables, straight_through(z, z_q))

    assert_same_function(vq_model, "decoder", lambda z: vq_model.decode(z).sample, decode, image(4, 7, D))


def test_every_parameter_of_theirs_but_the_codes_is_one_of_ours_and_the_other_way_round(vq_model):
    used = [NAMES[name] for name in our_shapes()]
    assert sorted(used) == sorted(name for name, _ in vq_model.named_parameters() if name != "quantize.embedding.weight")


def test_what_is_quantised_and_the_commitment_are_monai_s_with_their_gradients(ema_quantizer):
    """By Σ c · z_q + β · commitment (c fixed, random): straight through the first, to the code by the second."""
    z, c = image(6, 5, D), image(6, 5, D, seed=1)
    their_z = nchw(z)
    loss, their_output = ema_quantizer(60)(their_z)
    ((their_output * torch.tensor(c.transpose(0, 3, 1, 2))).sum() + loss).backward()

    @jax.jit
    def run(z):
        def total(z):
            z_q, _ = quantise(jax.lax.stop_gradient(z), codebook())
            commitment = COMMITMENT * mean_squared_error(z, z_q)
            output = straight_through(z, z_q)
            return (c * output).sum() + commitment, (output, commitment)

        (_, out), gradient = jax.value_and_grad(total, has_aux=True)(z)
        return *out, gradient

    output, commitment, gradient = run(z)
    assert_close(output, nhwc(their_output))
    np.testing.assert_allclose(commitment, loss.item(), rtol=1e-5)
    assert_close(gradient, nhwc(their_z.grad))
    # Of the commitment alone, which the sum above could hide.
    assert_close(gradient - c, nhwc(their_z.grad) - c)


def test_codebook_and_perplexity_after_a_batch_are_monai_s(ema_quantizer):
    z = image(6, 5, D)
    wrapper = ema_quantizer(60)
    wrapper(nchw(z))
    theirs = wrapper.quantizer
    _, indices = quantise(z, codebook())
    ours = updated(codebook(), z, indices, DECAY)
    assert_close(ours.usage, theirs.ema_cluster_size.numpy() / 60)
    assert_close(ours.sums, theirs.ema_w.numpy() / 60)
    assert_close(codes(ours), theirs.embedding.weight.detach().numpy())
    np.testing.assert_allclose(perplexity(indices, K), wrapper.perplexity.item(), rtol=1e-4)
    moved = np.abs(codes(ours) - codes(codebook())).max(-1)
    assert (moved > 1e-2).sum() > K // 2


def test_smoothing_is_monai_s_where_it_shows(ema_quantizer):
    """Of a code that lies far from everything, and has 1e-6 of its share: by ε it is drawn to a tenth of where it was."""
    usage, sums = codebook()
    usage = usage.at[0].set(1e-6 / K)
    past = Codebook(usage, sums.at[0].set(usage[0] * 50.0))
    wrapper, z = ema_quantizer(60), image(6, 5, D)
    theirs = wrapper.quantizer
    theirs.ema_cluster_size, theirs.ema_w = (torch.tensor(np.asarray(x)) * 60 for x in past)
    theirs.embedding.weight.data[0] = 50.0
    wrapper(nchw(z))
    after = codes(updated(past, z, quantise(z, past._replace(sums=past.sums.at[0].set(50.0)))[1], DECAY))
    assert_close(after, theirs.embedding.weight.detach().numpy())
    assert_close(after[0], theirs.embedding.weight.detach().numpy()[0])
    assert 0 < after[0].max() < 0.1 * 50
