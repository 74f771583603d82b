"""Layers of MoEDiff-SR's experts against PyTorch's and diffusers', with the same weights: forward, and gradients by input and weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.nn.complex import ComplexConv
from jaxsr.nn.convolution import conv, conv_transpose
from jaxsr.nn.resnet import ResnetBlock

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")

GROUPS, EMBEDDING = 4, 16


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nchw(x):
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x


def nhwc(x):
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def complex_of(x):
    """The first half of the channels as real part, the second as imaginary part."""
    real, imaginary = np.split(x, 2, axis=-1)
    return real + 1j * imaginary


def paired(z):
    return np.concatenate([z.real, z.imag], axis=-1) if np.iscomplexobj(z) else z


def assert_close(ours, theirs):
    """Relative to the largest entry: 1e-4, in float32."""
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=1e-4)


def assert_same_function(ours, theirs, name_map, *inputs, to_theirs=lambda x: x):
    """The same output, and the same gradients of Σ c · output (c fixed, random) by every input and every weight.

    `name_map` makes our parameters of arrays by their names; `to_theirs` makes their inputs of ours.
    """
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter) * (0.5 / np.sqrt(max(1, parameter[0].numel())))
    named = dict(theirs.named_parameters())
    params = jax.tree.map(jnp.asarray, name_map({name: p.detach().numpy() for name, p in named.items()}))
    expected_shapes = nn.meta.unbox(jax.eval_shape(ours.init, jax.random.key(0), *inputs))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected_shapes)

    their_inputs = [torch.tensor(nchw(to_theirs(x)), requires_grad=True) for x in inputs]
    their_output = theirs(*their_inputs)
    expected = paired(nhwc(their_output.detach().numpy()))
    weights = random(*expected.shape, seed=1)
    total = their_output * torch.tensor(nchw(to_theirs(weights))).conj()
    total.sum().real.backward()

    @jax.jit
    @jax.value_and_grad
    def run(arguments):
        return (ours.apply({"params": arguments[0]}, *arguments[1]) * weights).sum()

    assert_close(ours.apply({"params": params}, *inputs), expected)
    _, (by_params, by_inputs) = run((params, inputs))
    for ours_, theirs_ in zip(by_inputs, their_inputs, strict=True):
        assert_close(ours_, paired(nhwc(theirs_.grad.numpy())))
    jax.tree.map(assert_close, by_params, name_map({name: p.grad.numpy() for name, p in named.items()}))


def kernel_and_bias(arrays, prefix=""):
    """OIHW → HWIO."""
    return {"kernel": arrays[f"{prefix}weight"].transpose(2, 3, 1, 0), "bias": arrays[f"{prefix}bias"]}


def test_the_transposed_convolution_is_torch_s_with_its_kernel_turned_by_180_degrees():
    def name_map(arrays):
        return {"kernel": arrays["weight"][:, :, ::-1, ::-1].transpose(2, 3, 0, 1), "bias": arrays["bias"]}  # IOHW → HWIO

    theirs = torch.nn.ConvTranspose2d(6, 5, 4, stride=2, padding=1)
    assert_same_function(conv_transpose(5), theirs, name_map, random(2, 7, 8, 6))


def test_the_halving_convolution_is_torch_s():
    theirs = torch.nn.Conv2d(6, 5, 4, stride=2, padding=1)
    assert_same_function(conv(5, 4, stride=2, padding=(1, 1)), theirs, kernel_and_bias, random(2, 6, 8, 6))


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_the_dilated_convolution_is_torch_s(dilation):
    theirs = torch.nn.Conv2d(6, 5, 3, dilation=dilation, padding=dilation)
    assert_same_function(conv(5, dilation=dilation), theirs, kernel_and_bias, random(2, 7, 8, 6))


@pytest.mark.parametrize("size", [1, 3])
def test_the_complex_convolution_is_torch_s_of_complex_numbers(size):
    """A gradient by a complex number is, in PyTorch, ∂/∂real + i ∂/∂imaginary: here the two parts' own."""

    def name_map(arrays):
        kernel = arrays["weight"].transpose(2, 3, 1, 0)
        return {"real": kernel.real, "imaginary": kernel.imag, "bias": paired(arrays["bias"])}

    theirs = torch.nn.Conv2d(3, 4, size, padding=size // 2, dtype=torch.complex64)
    assert_same_function(ComplexConv(8, size), theirs, name_map, random(2, 7, 8, 6), to_theirs=complex_of)


@pytest.mark.parametrize("features", [8, 16])
def test_the_residual_block_with_film_is_diffusers_with_scale_and_shift(features):
    resnet = pytest.importorskip("diffusers.models.resnet")
    theirs = resnet.ResnetBlock2D(
        in_channels=8,
        out_channels=features,
        temb_channels=EMBEDDING,
        groups=GROUPS,
        eps=1e-5,
        non_linearity="swish",
        skip_time_act=True,
        time_embedding_norm="scale_shift",
    )

    def name_map(arrays):
        convolutions = {"conv1": "conv1", "conv2": "conv2", "skip": "conv_shortcut"}
        named = {ours: kernel_and_bias(arrays, f"{name}.") for ours, name in convolutions.items() if f"{name}.weight" in arrays}
        norms = {name: {"scale": arrays[f"{name}.weight"], "bias": arrays[f"{name}.bias"]} for name in ("norm1", "norm2")}
        film = {"kernel": arrays["time_emb_proj.weight"].T, "bias": arrays["time_emb_proj.bias"]}
        return {**named, **norms, "film": {"scale_and_shift": film}}

    assert_same_function(ResnetBlock(features, GROUPS, film=True), theirs, name_map, random(2, 8, 8, 8), random(2, EMBEDDING, seed=9))
