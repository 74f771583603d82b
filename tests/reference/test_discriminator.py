"""Spectral normalisation, the PatchGAN, adversarial errors and R1 against PyTorch, with the same weights and singular vectors."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.losses.adversarial import discriminator_errors, generator_errors, r1_penalty
from jaxsr.models.discriminator import PatchDiscriminator
from jaxsr.nn.spectral import SpectralConv

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.functional import binary_cross_entropy_with_logits, relu  # noqa: E402
from torch.nn.utils.parametrizations import spectral_norm  # noqa: E402

WIDTH, LAYERS, RATE = 6, 3, 0.05
NAMES = (*(f"layer{i}" for i in range(LAYERS + 1)), "head")


def patch_gan(spectral):
    """pix2pix's discriminator of one channel without its batch normalisation."""
    wrap = spectral_norm if spectral else lambda layer: layer
    torch.manual_seed(0)
    widths = [1, *(WIDTH * 2**i for i in range(LAYERS + 1)), 1]
    layers = []
    for i, (before, after) in enumerate(pairwise(widths)):
        layers += [wrap(nn.Conv2d(before, after, 4, 2 if i < LAYERS else 1, 1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def convolutions(model):
    return dict(zip(NAMES, (layer for layer in model if isinstance(layer, nn.Conv2d)), strict=True))


def weight_of(layer):
    return layer.parametrizations.weight.original if hasattr(layer, "parametrizations") else layer.weight


def params_of(layer, gradient=False):
    weight, bias = (p.grad if gradient else p for p in (weight_of(layer), layer.bias))
    return {"kernel": weight.detach().numpy().transpose(2, 3, 1, 0).copy(), "bias": bias.detach().numpy().copy()}


def vectors_of(layer):
    """Their v is of (channel, row, column), ours of (row, column, channel)."""
    state, shape = layer.parametrizations.weight[0], weight_of(layer).shape
    return {"u": state._u.numpy().copy(), "v": state._v.numpy().reshape(shape[1:]).transpose(1, 2, 0).ravel()}


def variables_of(model, spectral):
    layers = convolutions(model)
    params = {"params": {name: params_of(layer) for name, layer in layers.items()}}
    return {**params, "spectral": {name: vectors_of(layer) for name, layer in layers.items()}} if spectral else params


def image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nchw(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2), requires_grad=True)


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def assert_close(ours, theirs):
    """Relative to the largest entry: 1e-4, in float32."""
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=1e-4)


def test_a_normalised_convolution_is_torch_s_forward_gradient_and_vectors_through_steps_of_training_and_after():
    """Descent of Σ c · output (c fixed, random) changes the weights, so that the order of u and v shows."""
    torch.manual_seed(0)
    theirs = spectral_norm(nn.Conv2d(3, 5, 4, 2, 1))
    ours = SpectralConv(5, 4, stride=2, padding=(1, 1))
    state = theirs.parametrizations.weight[0]
    state._u, state._v = (nn.functional.normalize(torch.randn_like(x), dim=0) for x in (state._u, state._v))  # far from converged
    optimiser = torch.optim.SGD(theirs.parameters(), RATE)
    variables, x, c = {"params": params_of(theirs), "spectral": vectors_of(theirs)}, image(2, 8, 10, 3), image(2, 4, 5, 5, seed=1)

    @jax.jit
    def step(variables, x):
        def total(params, x):
            output, after = ours.apply({**variables, "params": params}, x, train=True, mutable=["spectral"])
            return (c * output).sum(), (output, after["spectral"])

        (_, (output, vectors)), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(variables["params"], x)
        params = jax.tree.map(lambda p, g: p - RATE * g, variables["params"], gradients[0])
        return output, gradients, {"params": params, "spectral": vectors}

    for _ in range(5):
        before, their_x = params_of(theirs)["kernel"], nchw(x)
        their_output = theirs(their_x)
        optimiser.zero_grad()
        (their_output * torch.tensor(c.transpose(0, 3, 1, 2))).sum().backward()
        output, (by_params, by_x), variables = step(variables, x)
        optimiser.step()
        assert_close(output, nhwc(their_output))
        assert_close(by_x, nhwc(their_x.grad))
        jax.tree.map(assert_close, by_params, params_of(theirs, gradient=True))
        jax.tree.map(assert_close, variables, {"params": params_of(theirs), "spectral": vectors_of(theirs)})
        assert np.abs(params_of(theirs)["kernel"] - before).max() > 0.1 * np.abs(before).max()

    theirs.eval()  # of weights that have moved on from u and v
    assert_close(ours.apply(variables, x), nhwc(theirs(nchw(x))))


@pytest.mark.parametrize("spectral", [True, False])
@pytest.mark.parametrize("side", [32, 45])
def test_logits_and_their_gradients_are_torch_s(spectral, side):
    model, network, x = patch_gan(spectral), PatchDiscriminator(WIDTH, LAYERS, spectral), image(2, side, 32, 1)
    variables, their_x = variables_of(model, spectral), nchw(x)
    their_logits = model(their_x)
    c = image(*nhwc(their_logits).shape, seed=1)
    (their_logits * torch.tensor(c.transpose(0, 3, 1, 2))).sum().backward()

    @jax.jit
    def run(params, x):
        def total(params, x):
            logits, after = network.apply({**variables, "params": params}, x, train=True, mutable=["spectral"])
            return (c * logits).sum(), (logits, after)

        (_, out), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(params, x)
        return *out, gradients

    logits, after, (by_params, by_x) = run(variables["params"], x)
    assert_close(logits, nhwc(their_logits))
    assert_close(by_x, nhwc(their_x.grad))
    jax.tree.map(assert_close, by_params, {name: params_of(layer, gradient=True) for name, layer in convolutions(model).items()})
    if spectral:
        jax.tree.map(assert_close, after["spectral"], {name: vectors_of(layer) for name, layer in convolutions(model).items()})


@pytest.mark.parametrize("spectral", [True, False])
def test_r1_and_its_gradient_by_the_weights_are_torch_s(spectral):
    model, network, x = patch_gan(spectral), PatchDiscriminator(WIDTH, LAYERS, spectral), image(2, 32, 32, 1)
    variables, their_x = variables_of(model, spectral), nchw(x)
    (gradient,) = torch.autograd.grad(model(their_x).sum(), their_x, create_graph=True)
    their_penalty = gradient.square().sum((1, 2, 3)) / 2
    their_penalty.sum().backward()

    @jax.jit
    def run(params):
        def total(params):
            def logits_of(x):
                return network.apply({**variables, "params": params}, x, train=True, mutable=["spectral"])[0]

            penalty = r1_penalty(logits_of, jnp.asarray(x))
            return penalty.sum(), penalty

        gradients, penalty = jax.grad(total, has_aux=True)(params)
        return penalty, gradients

    penalty, by_params = run(variables["params"])
    assert_close(penalty, their_penalty.detach().numpy())
    for name, layer in convolutions(model).items():
        assert_close(by_params[name]["kernel"], weight_of(layer).grad.numpy().transpose(2, 3, 1, 0))
        assert np.abs(by_params[name]["kernel"]).max() > 0
        assert not by_params[name]["bias"].any()  # the slope of a leaky ReLU is constant nearly everywhere
        assert layer.bias.grad is None or not layer.bias.grad.any()


def their_errors(real, fake, kind):
    if kind == "hinge":
        return relu(1 - real) + relu(1 + fake), -fake
    real_label, fake_label = torch.ones_like(real), torch.zeros_like(fake)
    cost = [
        binary_cross_entropy_with_logits(*pair, reduction="none") for pair in ((real, real_label), (fake, fake_label), (fake, real_label))
    ]
    return cost[0] + cost[1], cost[2]


@pytest.mark.parametrize("kind", ["hinge", "nonsaturating"])
def test_errors_and_their_gradients_are_torch_s(kind):
    real, fake = 3 * image(2, 4, 5, 6, 1)
    their_real, their_fake = nchw(real), nchw(fake)
    discriminator, generator = (e.mean((1, 2, 3)) for e in their_errors(their_real, their_fake, kind))
    (discriminator + 3 * generator).sum().backward()

    def total(real, fake):
        errors = discriminator_errors(real, fake, kind), generator_errors(fake, kind)
        return (errors[0] + 3 * errors[1]).sum(), errors

    (_, errors), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(real, fake)
    for ours, theirs in zip(errors, (discriminator, generator), strict=True):
        assert_close(ours, theirs.detach().numpy())
    for ours, theirs in zip(gradients, (their_real, their_fake), strict=True):
        assert_close(ours, nhwc(theirs.grad))
