"""The perceptual loss of MoEDiff-SR's Eq. 10 on torchvision's VGG-16: features up to relu3_3, value and gradient.

The published weights are a download, so both sides have the same random ones, read from a file as `jaxsr weights import vgg16` makes it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.models.perceptual_loss import projection, vgg_image_errors, vgg_latent_errors, vgg_shapes
from jaxsr.weights.imported import import_weights, read_vgg16

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
tv = pytest.importorskip("torchvision.models", reason="torchvision is installed by .ci/run, without its dependencies")

RELU3_3 = 16  # layers of `features` up to it
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)  # ImageNet's, of images in 0…1


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Their network and our parameters, by way of files."""
    folder = tmp_path_factory.mktemp("vgg")
    torch.manual_seed(0)
    theirs = tv.vgg16(weights=None)
    torch.save(theirs.state_dict(), folder / "vgg16.pth")
    import_weights("vgg16", [folder / "vgg16.pth"], folder / "vgg.safetensors")
    layers = read_vgg16(folder / "vgg.safetensors")
    return theirs.features[:RELU3_3], {"params": {name: layers[name] for name in vgg_shapes()}}


def random(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def their_errors(features, x, y):
    """`[B]`, of three channels `[B, 3, H, W]`."""
    return (features(x) - features(y)).square().mean((1, 2, 3))


def test_the_file_gives_the_layers_that_are_needed_of_the_shapes_that_are_told(both):
    wanted = jax.tree.map(lambda leaf: leaf.shape, nn.meta.unbox(vgg_shapes()))
    assert jax.tree.map(lambda leaf: leaf.shape, both[1]["params"]) == wanted
    assert sum(leaf.size for leaf in jax.tree.leaves(both[1])) == 1_735_488


def test_latents_in_the_projection_err_as_there(both):
    features, params = both
    x, y = random(2, 16, 12, 8, seed=1), random(2, 16, 12, 8, seed=2)
    theirs = torch.tensor(x, requires_grad=True)
    three = [(z @ torch.tensor(projection(8))).permute(0, 3, 1, 2) for z in (theirs, torch.tensor(y))]
    expected = their_errors(features, *three)
    expected.sum().backward()
    ours, gradient = jax.value_and_grad(lambda x: vgg_latent_errors(params, x, jnp.asarray(y)).sum())(jnp.asarray(x))
    np.testing.assert_allclose(vgg_latent_errors(params, x, y), expected.detach(), rtol=1e-4)
    np.testing.assert_allclose(ours, expected.sum().item(), rtol=1e-4)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-4, atol=1e-4 * np.abs(theirs.grad.numpy()).max())


def test_images_err_as_there_scaled_as_imagenet(both):
    """Grey in −1…1 here, colours in 0…1 with ImageNet's mean and deviation there; ours are those of LPIPS, which are rounded."""
    features, params = both
    x, y = np.tanh(random(2, 16, 20, 1, seed=3)), np.tanh(random(2, 16, 20, 1, seed=4))
    theirs = torch.tensor(x, requires_grad=True)
    scaled = [(((z + 1) / 2 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(0, 3, 1, 2) for z in (theirs, torch.tensor(y))]
    expected = their_errors(features, *scaled)
    expected.sum().backward()
    gradient = jax.grad(lambda x: vgg_image_errors(params, x, jnp.asarray(y)).sum())(jnp.asarray(x))
    np.testing.assert_allclose(vgg_image_errors(params, x, y), expected.detach(), rtol=1e-4)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-4, atol=1e-4 * np.abs(theirs.grad.numpy()).max())


def test_the_backbone_of_lpips_serves_too(tmp_path):
    """A file of `jaxsr weights import lpips` for net vgg: who scores by LPIPS has it already."""
    package = pytest.importorskip("lpips", reason="lpips is installed by .ci/run, without its dependencies")
    torch.manual_seed(1)
    theirs = package.LPIPS(net="vgg", pretrained=True, pnet_rand=True, verbose=False)
    torch.save(theirs.state_dict(), tmp_path / "lpips.pth")
    import_weights("lpips", [tmp_path / "lpips.pth"], tmp_path / "lpips.safetensors")
    kernel = read_vgg16(tmp_path / "lpips.safetensors")["conv3_3"]["kernel"]
    np.testing.assert_array_equal(kernel, theirs.state_dict()["net.slice3.14.weight"].numpy().transpose(2, 3, 1, 0))
