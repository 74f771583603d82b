"""Laws of volume → volume [teacher paper, Algorithm 2]."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from jaxsr.methods.base import Request, UpscaleOutput
from jaxsr.methods.condition import Batch
from jaxsr.methods.sr3 import Sr3Config, Sr3NetworkConfig
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.batches import fitting_size
from jaxsr.upscale.engine import Engine
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import Volume
from jaxsr.volume.slices import AXES

ONE_STEP = Request(steps=1)
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, -0.1) @ np.diag([2.0, 2.0, 2.0]), [-30.0, 12.0, 7.0])


@pytest.fixture(scope="module")
def head():
    """An odd-sized bright ball with texture, in an oblique scanner."""
    shape = (21, 24, 19)
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt((points**2).sum(0))
    data = np.where(radius < 0.8, 700 + 200 * np.sin(9 * points[0]) * np.cos(7 * points[1]), 20 * np.abs(points[2]))
    return Volume(data.astype(np.float32), OBLIQUE, ("L", "P", "S"))


@pytest.fixture(scope="module")
def sr3():
    network = Sr3NetworkConfig(width=8, multipliers=(1, 2), blocks=1, groups=4, attention_at=(), dropout=0.0)
    method = Sr3Config(network=network, prediction="v", residual_std=0.2, sampling_steps=2, eta=0.5).build()
    image = jnp.zeros((1, 16, 16, 1))
    variables = jax.tree.map(jnp.asarray, method.init(jax.random.key(0), Batch(image, image)))
    # The last layer starts at zero; noise makes the answer depend on everything.
    leaves, tree = jax.tree.flatten(nn.meta.unbox(variables))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return method, jax.tree.unflatten(tree, [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


@pytest.fixture
def identity_engine(identity_method):
    return lambda **options: Engine(identity_method, {}, make_mesh(), **{"batch_size": 8, **options})


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("shape", [(17, 30, 23), (32, 16, 48)])
def test_slicing_padding_batching_and_fusing_return_the_input_exactly(identity_engine, shape, batch_size):
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    engine = identity_engine(batch_size=batch_size)
    fused, _ = engine.fuse(data, dict.fromkeys(AXES, ONE_STEP), jax.random.key(0))
    assert fused.dtype == np.float32
    np.testing.assert_array_equal(fused, data)


def test_metrics_are_means_over_slices_whatever_fills_the_last_batch():
    """5 + 6 + 7 slices in batches of 4: what a filler slice reports is not counted."""

    class Counting:
        multiple = 8

        def upscale(self, variables, condition, keys, request):
            return UpscaleOutput(condition.low, {"filled": (condition.low[:, 0, 0, 0] > 6).astype(jnp.float32)})

    fused = Engine(Counting(), {}, make_mesh(), batch_size=4, slice_map="resize").fuse(
        np.full((5, 6, 7), 7, np.float32), dict.fromkeys(AXES, ONE_STEP), jax.random.key(0)
    )
    assert fused[1] == {"filled": 1.0}


def test_a_method_that_changes_nothing_returns_the_volume(identity_engine, head):
    result = identity_engine().upscale(head, ONE_STEP)
    window = fit_window(head.data)
    np.testing.assert_allclose(result.volume.data, head.data, atol=1e-6 * (window.high - window.low))
    np.testing.assert_array_equal(result.volume.affine, head.affine)
    assert result.volume.orientation == head.orientation


@pytest.mark.parametrize("to_mm", [0.7, 1.0, 1.3, 3.0])
def test_a_landmark_keeps_its_place_in_the_scanner(identity_engine, to_mm):
    """The brightest point of a blob, found to a fraction of a voxel by its centroid, in scanner millimetres."""
    shape, centre = (40, 44, 36), np.array([18.3, 23.6, 15.2])
    points = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    data = np.exp(-((points - centre) ** 2).sum(-1) / (2 * 3.0**2)).astype(np.float32) * 1000
    volume = Volume(data, OBLIQUE)
    out = identity_engine().upscale(volume, ONE_STEP, to_mm=to_mm).volume
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in out.data.shape], indexing="ij"), -1)
    weights = np.clip(out.data, 0, None)[..., None] ** 2
    found = nib.affines.apply_affine(out.affine, (weights * voxels).sum((0, 1, 2)) / weights.sum())
    np.testing.assert_allclose(found, nib.affines.apply_affine(OBLIQUE, centre), atol=0.05)
    np.testing.assert_allclose(out.voxel_size, to_mm, rtol=1e-6)


def test_each_shape_compiles_once_however_many_slices_and_volumes(identity_engine, head):
    engine = identity_engine()
    first = engine.upscale(head, ONE_STEP)
    assert first.compilations == first.plan.compilations == engine.compilations
    assert engine.upscale(head, ONE_STEP).compilations == 0


def test_the_result_does_not_depend_on_the_batch_size(head, sr3):
    method, variables = sr3
    request = method.default_request
    small, large = (Engine(method, variables, make_mesh(), batch_size=n).upscale(head, request).volume.data for n in (3, 16))
    np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-4 * np.abs(large).max())


def test_another_seed_gives_another_sample(head, sr3):
    method, variables = sr3
    engine = Engine(method, variables, make_mesh(), batch_size=16)
    one, other = (engine.upscale(head, method.default_request, seed=s).volume.data for s in (0, 1))
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


def test_an_axis_with_few_voxels_never_lies_within_a_slice(identity_engine):
    volume = Volume(np.random.default_rng(0).normal(100, 20, (20, 24, 9)).astype(np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
    result = identity_engine().upscale(volume, ONE_STEP)
    assert result.plan.axes == ("axial",)
    assert len(result.plan.left_out) == 2
    assert "9 voxels" in result.plan.left_out[0]


def test_resized_slices_have_the_size_of_the_papers(identity_engine, head):
    plan = identity_engine(slice_map="resize").plan(head, 1.0, ("axial",))
    assert plan.shapes == ((256, 256),)


def test_progress_counts_every_slice_of_every_axis(identity_engine, head):
    seen = []
    identity_engine().upscale(head, ONE_STEP, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (sum(head.data.shape),) * 2
    assert seen == sorted(seen)


@pytest.mark.parametrize("counts, most, devices, expected", [
    ((260,), 64, 1, 52),  # 5 × 52, where 5 × 64 would be 60 fillers
    ((310,), 64, 1, 62),
    ((260, 310, 260), 64, 1, 52),  # one program for all three: 832 slices in 16 batches, of 830
    ((260,), 64, 8, 56),  # a multiple of the devices
    ((3,), 64, 1, 3), ((7,), 1, 1, 1),
])  # fmt: skip
def test_batches_are_of_the_size_that_costs_the_least(counts, most, devices, expected):
    size = fitting_size(counts, most, devices)
    assert size == expected
    padded = [-(-count // size) * size for count in counts]
    assert sum(padded) <= sum(-(-count // most) * most for count in counts)  # never more than of the largest


def test_a_volume_of_a_few_slices_more_takes_the_programs_of_the_one_before(identity_engine):
    """As long as that is not much dearer than programs of its own."""
    engine = identity_engine(batch_size=16)
    for sagittal, compilations in ((60, 1), (50, 1), (64, 1), (17, 2), (60, 2)):
        data = np.random.default_rng(0).normal(size=(sagittal, 32, 48)).astype(np.float32)
        fused, _ = engine.fuse(data, {"sagittal": ONE_STEP}, jax.random.key(0))
        np.testing.assert_array_equal(fused, data)
        assert engine.compilations == compilations
