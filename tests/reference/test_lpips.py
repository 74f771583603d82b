"""LPIPS equals the package lpips: value, map, gradient; on noise and on slices of a head; for the three networks.

The published backbones are a download, so both sides have the same random backbone under lpips' own heads: what is compared is the
computation and the map of names.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jaxsr.evaluate.metrics.perceptual import lpips, lpips_map
from jaxsr.models.perceptual import BACKBONES, LEAST_SIDE, NETS, PerceptualDistance, mean_distance
from jaxsr.weights.perceptual import from_lpips, from_torchvision, head_names

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
tv = pytest.importorskip("torchvision.models", reason="torchvision is installed by .ci/run, without its dependencies")
package = pytest.importorskip("lpips", reason="lpips is installed by .ci/run, without its dependencies")

WINDOW = (-0.2, 1.1)  # the data range: not that of lpips, and not symmetric


def noise(_folder):
    """Two coloured images and their noisy copies `[2, 33, 38, 3]`."""
    rng = np.random.default_rng(0)
    y = rng.uniform(*WINDOW, (2, 33, 38, 3))
    return (y + 0.1 * rng.normal(size=y.shape)).astype(np.float32), y.astype(np.float32)


def head(folder):
    """An axial slice of a real T1w `[1, 40, 48, 1]`, and of its blurred copy; from the dark into the brain."""
    path = folder / "open_ms_patient07" / "T1_brain_MNI1mm.nii.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    import nibabel

    y = np.asarray(nibabel.load(path).dataobj, np.float32)[20:60, 80:128, 70:71]
    y /= y.max()
    return tuple(np.moveaxis(image, 2, 0)[..., None] for image in (gaussian_filter(y, (1, 1, 0)), y))


@pytest.fixture(scope="module", params=NETS)
def both(request):
    """Theirs, and its weights under our names."""
    torch.manual_seed(0)
    theirs = package.LPIPS(net=request.param, pnet_rand=True, verbose=False)
    return theirs, from_lpips(request.param, state(theirs))


def state(module):
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def to_theirs(x):
    """To [−1, 1], three channels, NCHW."""
    low, high = WINDOW
    x = np.repeat(x, 3 // x.shape[-1], axis=-1).transpose(0, 3, 1, 2)
    return torch.tensor(2 * (x - low) / (high - low) - 1)


def their_value_and_slope(theirs, x, y):
    """Value `[B]` and the sum's gradient by `x`, in our shape."""
    leaf = torch.tensor(x, requires_grad=True)
    low, high = WINDOW
    scaled = (2 * (leaf - low) / (high - low) - 1).permute(0, 3, 1, 2)
    value = theirs(scaled.expand(-1, 3, -1, -1), to_theirs(y)).flatten()
    value.sum().backward()
    return value.detach().numpy(), leaf.grad.numpy()


@pytest.mark.parametrize("images", [noise, head])
def test_the_value_is_that_of_lpips(both, images, request):
    theirs, weights = both
    x, y = images(request.getfixturevalue("mri") if images is head else Path())
    expected = theirs(to_theirs(x), to_theirs(y)).detach().numpy().ravel()
    np.testing.assert_allclose(lpips(x, y, weights, data_range=WINDOW), expected, rtol=1e-4)


@pytest.mark.parametrize("both", ["alex", "squeeze"], indirect=True)
@pytest.mark.parametrize("images", [noise, head])
def test_the_gradient_is_that_of_lpips_but_for_float32(both, images, request):
    """Where a rectifier or a maximum is within rounding of its edge, either side's slope is right: torch's own in float32 was seen to lie
    1.1 % of its length from torch's in float64. The next test leaves no such room."""
    theirs, weights = both
    x, y = images(request.getfixturevalue("mri") if images is head else Path())
    slope = jax.grad(lambda x: lpips(x, y, weights, data_range=WINDOW).sum())(x)
    _, expected = their_value_and_slope(theirs, x, y)
    assert np.linalg.norm(slope - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.parametrize("images", [noise, head])
def test_in_float64_the_gradient_is_that_of_lpips_at_every_pixel(both, images, request):
    """To the float32 in which lpips keeps the constants of its scaling."""
    theirs, weights = both
    x, y = (image.astype(np.float64) for image in images(request.getfixturevalue("mri") if images is head else Path()))
    low, high = WINDOW
    try:
        expected, expected_slope = their_value_and_slope(theirs.double(), x, y)
    finally:
        theirs.float()
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), weights.variables)

        @jax.jit
        def ours(x):
            x, of_y = (2 * (image - low) / (high - low) - 1 for image in (x, y))
            return mean_distance(PerceptualDistance(weights.net).apply(variables, x, of_y)).sum()

        value, slope = jax.value_and_grad(ours)(jnp.asarray(x))
        assert slope.dtype == jnp.float64
    np.testing.assert_allclose(value, expected.sum(), rtol=1e-6)
    np.testing.assert_allclose(slope, expected_slope, rtol=0, atol=1e-6 * np.abs(expected_slope).max())


@pytest.mark.parametrize("images", [noise, head])
def test_the_map_is_that_of_lpips(both, images, request):
    theirs, weights = both
    x, y = images(request.getfixturevalue("mri") if images is head else Path())
    theirs.spatial = True
    try:
        expected = theirs(to_theirs(x), to_theirs(y)).detach().numpy().transpose(0, 2, 3, 1)
    finally:
        theirs.spatial = False
    np.testing.assert_allclose(lpips_map(x, y, weights, data_range=WINDOW), expected, atol=1e-4 * expected.max())


def test_a_mask_weights_each_of_their_layers_by_area(both):
    """Their layers' maps, each spread over the image in even shares: here by repeating both to a common multiple of their sides."""
    theirs, weights = both
    x, y = noise(None)
    mask = np.random.default_rng(5).random((2, 33, 38, 1)) < 0.4
    mask[:, :11] = False
    expected = 0.0
    features = [theirs.net(theirs.scaling_layer(to_theirs(image))) for image in (x, y)]
    for of_x, of_y, head_ in zip(*features, theirs.lins, strict=True):
        unit = [f / ((f**2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (of_x, of_y)]
        found = head_((unit[0] - unit[1]) ** 2).detach().numpy()[:, 0]
        fine, coarse = mask[..., 0].astype(float), found.astype(float)
        for axis in (1, 2):
            n, m = fine.shape[axis], coarse.shape[axis]
            fine, coarse = fine.repeat(np.lcm(n, m) // n, axis), coarse.repeat(np.lcm(n, m) // m, axis)
        expected += (fine * coarse).sum((1, 2)) / fine.sum((1, 2))
    np.testing.assert_allclose(lpips(x, y, weights, data_range=WINDOW, mask=mask), expected, rtol=1e-4)


@pytest.mark.parametrize("net, build", [("alex", tv.alexnet), ("vgg", tv.vgg16), ("squeeze", tv.squeezenet1_1)])
def test_torchvisions_backbone_and_the_shipped_heads_are_read(net, build):
    """The whole state dictionary of torchvision, and the file of heads that lpips ships; features equal torchvision's."""
    theirs = build(weights=None).eval()
    heads = torch.load(Path(package.__file__).parent / "weights" / "v0.1" / f"{net}.pth", map_location="cpu", weights_only=True)
    assert heads.keys() == set(head_names(net).values())
    weights = from_torchvision(net, state(theirs), {name: tensor.numpy() for name, tensor in heads.items()})
    x = np.random.default_rng(0).normal(size=(1, 64, 68, 3)).astype(np.float32)
    features = jax.jit(BACKBONES[net]().apply)({"params": weights.variables["params"]["backbone"]}, x)
    with torch.no_grad():
        stages, found = theirs.features, torch.tensor(x.transpose(0, 3, 1, 2))
        outputs = [found := stage(found) for stage in stages]
    for ours in features:
        fits = [o.numpy().transpose(0, 2, 3, 1) for o in outputs if o.shape[1:] == (ours.shape[3], *ours.shape[1:3])]
        assert min(np.abs(ours - o).max() / np.abs(o).max() for o in fits) < 1e-4


@pytest.mark.parametrize("net", NETS)
def test_where_ours_refuses_for_size_theirs_fails(net):
    theirs = package.LPIPS(net=net, pnet_rand=True, verbose=False)
    least = LEAST_SIDE[net]
    assert torch.isfinite(theirs(*torch.rand(2, 1, 3, least, 40))).all()
    with pytest.raises(RuntimeError):
        theirs(*torch.rand(2, 1, 3, least - 1, 40))
