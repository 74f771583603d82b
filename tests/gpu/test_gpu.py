"""What only a CUDA machine can tell: that it computes what a CPU does, and that the published network trains on it.

Every test runs on one GPU; those that compare need the CPU as a second platform, so JAX_PLATFORMS unset or `cuda,cpu`.
"""

from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from jaxsr.bench.synthetic import synthetic_batch, synthetic_variables
from jaxsr.experiment import OptimizerConfig, load_experiment
from jaxsr.methods.condition import Batch
from jaxsr.methods.sr3 import Sr3Config, Sr3NetworkConfig
from jaxsr.methods.teacher import TeacherConfig
from jaxsr.nn.attend import attend, using
from jaxsr.runtime.mesh import AXES, batch_sharding, replicated
from jaxsr.train.build import abstract_batch, build_method
from jaxsr.train.state import State, init_state, make_optimizer
from jaxsr.train.step import make_step
from jaxsr.upscale.engine import Engine
from jaxsr.volume.io import Volume

pytestmark = pytest.mark.gpu

CONFIGS = Path(__file__).parents[2] / "configs"
NETWORK = Sr3NetworkConfig(width=16, multipliers=(1, 2), blocks=1, groups=8, attention_at=(2,), dropout=0.0)
RECIPE = Sr3Config(network=NETWORK, prediction="v", residual_std=0.2, sampling_steps=2, eta=0.5)
TEACHER = TeacherConfig(
    autoencoder={"network": {"channels": 1, "width": 8, "multipliers": (1, 2), "blocks": 1, "latent": 4, "groups": 4}},
    unet={"width": 16, "multipliers": (1, 2), "blocks": 1, "attention_at": (2,), "heads": 2, "context_width": 8, "groups": 8},
    image_encoder={"patch": 8, "width": 16, "layers": 1, "heads": 2, "projection": 8, "side": 16},
    guidance={"width": 8, "groups": 4},
    prediction="v",
    lambda_rec=0.5,
    sampling_steps=2,
)

UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # on the CPU optimising is all the time


@pytest.fixture(scope="module", autouse=True)
def gpu():
    """The first GPU. Here and not at the top of the file: collecting tests must not start a backend."""
    if jax.default_backend() != "gpu":
        pytest.skip(f"needs a CUDA device, and JAX computes on {jax.default_backend()}")
    return jax.local_devices()[0]


@pytest.fixture(scope="module")
def cpu(gpu):
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        pytest.skip("JAX_PLATFORMS leaves out the CPU, with which to compare: unset it, or JAX_PLATFORMS=cuda,cpu")


def mesh_of(device):
    return Mesh(np.array([device]).reshape(1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def images(n=8, side=32, maps=()):
    high, error, bias, *gradient = np.random.default_rng(0).standard_normal((6, n, side, side, 1), np.float32)
    fields = {"bias": 0.2 * bias, "gradient": 2 * np.concatenate(gradient, -1)}
    return Batch(high=high, low=high + 0.2 * error, **{name: fields[name] for name in maps})


def distance(a, b):
    """‖a − b‖ / ‖b‖ over all leaves."""
    a, b = (np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]) for tree in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("recipe, dtype, loss_tolerance, gradient_tolerance", [
    (RECIPE, jnp.float32, 1e-4, 1e-3),  # float32's 6e-8, summed in other orders; cuDNN may choose Winograd's algorithm
    (RECIPE, jnp.bfloat16, 1e-2, 5e-2),  # bfloat16's 4e-3, rounded at other places
    (TEACHER, jnp.float32, 1e-4, 1e-3),  # through what is frozen: the decoder, twice the encoder, the image encoder
], ids=["f32", "bf16", "teacher"])  # fmt: skip
def test_a_training_step_is_the_one_of_the_cpu(gpu, cpu, recipe, dtype, loss_tolerance, gradient_tolerance):
    """Adam divides by the gradient, so its first moment is compared, which the first step makes a tenth of the gradient."""
    method = recipe.build(dtype)
    optimizer = make_optimizer(OptimizerConfig(clip_norm=None), 100)
    batch = images(maps=getattr(recipe, "maps", ()))
    variables = synthetic_variables(method, batch, 1)  # no layer is zero, as the last would be, and all gradients before it
    params, frozen = variables["params"], variables["frozen"]
    start = State(np.int32(0), params, params, jax.device_get(optimizer.init(params)), {})

    def run(device):
        mesh = mesh_of(device)
        step = jax.jit(make_step(method, optimizer, ema=0.9, steps=100), compiler_options=UNOPTIMISED if device is cpu else None)
        everywhere = replicated(mesh)
        arguments = jax.device_put((start, batch, jax.random.key(5), frozen), (everywhere, batch_sharding(mesh), everywhere, everywhere))
        with jax.default_matmul_precision("highest"):
            state, metrics = step(*arguments)
        assert {leaf.device for leaf in jax.tree.leaves(state)} == {device}
        return jax.device_get(state), jax.device_get(metrics)

    (on_gpu, told), (on_cpu, expected) = run(gpu), run(cpu)
    np.testing.assert_allclose(told["loss"], expected["loss"], rtol=loss_tolerance)
    np.testing.assert_allclose(told["gradient_norm"], expected["gradient_norm"], rtol=gradient_tolerance)
    [moment], [expected_moment] = ([part.mu for part in jax.tree.leaves(s.opt, is_leaf=_has_mu) if _has_mu(part)] for s in (on_gpu, on_cpu))
    assert distance(moment, expected_moment) < gradient_tolerance


def _has_mu(part):
    return hasattr(part, "mu")


@pytest.fixture(scope="module")
def head():
    """A bright ball with texture, whose slices come in two padded shapes."""
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (30, 20, 18)], indexing="ij"))
    data = np.where((points**2).sum(0) < 0.7, 700 + 200 * np.sin(9 * points[0]) * np.cos(7 * points[1]), 20 * np.abs(points[2]))
    return Volume(data.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))


@pytest.fixture(scope="module")
def upscaled(head):
    """The head by an engine on `device`, as often as asked by the same engine."""
    method = RECIPE.build()
    variables = synthetic_variables(method, images(), 1)

    def upscaled(device, times=1):
        engine = Engine(method, variables, mesh_of(device), batch_size=8)
        with jax.default_matmul_precision("highest"):
            return [engine.upscale(head, method.default_request, to_mm=1.5) for _ in range(times)]

    return upscaled


def test_a_volume_is_the_one_of_the_cpu(gpu, cpu, upscaled):
    """To float32: products in full precision, not in TF32, whose 10 bits would show."""
    [on_gpu], [on_cpu] = upscaled(gpu), upscaled(cpu)
    contrast = on_cpu.window.high - on_cpu.window.low
    np.testing.assert_allclose(on_gpu.volume.data, on_cpu.volume.data, rtol=0, atol=1e-3 * contrast)
    np.testing.assert_array_equal(on_gpu.volume.affine, on_cpu.volume.affine)


def test_a_guided_volume_of_a_teacher_is_the_one_of_the_cpu(gpu, cpu, head):
    """Encoders, guidance, sampling and decoder: to float32, relative to the whole, as weights that mean nothing keep no contrast."""
    method = TEACHER.build()
    variables = synthetic_variables(method, images(maps=TEACHER.maps), 1)

    def upscaled(device):
        engine = Engine(method, variables, mesh_of(device), batch_size=8)
        shape = engine.plan(head, 2.0, ("axial",)).grid.shape
        bias, *gradient = np.random.default_rng(2).standard_normal((4, *shape), np.float32)
        maps = {"bias": 0.2 * bias, "gradient": 2 * np.stack(gradient, -1)}
        with jax.default_matmul_precision("highest"):
            return engine.upscale(head, method.default_request, to_mm=2.0, maps=maps, axes=("axial",)).volume.data

    assert distance(upscaled(gpu), upscaled(cpu)) < 1e-3


def test_each_shape_of_slices_compiles_once(gpu, upscaled):
    first, again = upscaled(gpu, times=2)
    assert first.compilations == first.plan.compilations == 2
    assert again.compilations == 0


def test_the_published_network_trains_in_bf16(gpu):
    """97.8 M parameters, 16 slices of 128 × 128: two steps fit, stay finite, and are one program."""
    experiment = load_experiment(CONFIGS / "sr3.yaml", ["train.batch_size=16"])
    assert (experiment.precision, experiment.data.crop) == ("bf16", 128)
    method, mesh = build_method(experiment), mesh_of(gpu)
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps)
    shape = abstract_batch(experiment)
    state, shardings = init_state(method, optimizer, shape, jax.random.key(0), mesh)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 97_804_033

    step = jax.jit(make_step(method, optimizer, ema=0.99, steps=100), donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    batch = jax.device_put(synthetic_batch(shape, 0), batch_sharding(mesh))
    root = jax.device_put(jax.random.key(1), replicated(mesh))
    for _ in range(2):
        state, metrics = step(state, batch, root)
        assert np.isfinite(metrics["loss"])
        assert np.isfinite(metrics["gradient_norm"])
    assert int(state.step) == 2
    assert step._cache_size() == 1
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("tokens, heads, width", [(1024, 8, 40), (1024, 1, 64), (256, 8, 160)])
def test_attention_by_what_this_gpu_takes_is_xla_s(tokens, heads, width, gpu):
    """Values and gradients in bfloat16, to its rounding, against float32's; cuDNN has no program for heads of 160 before Hopper."""
    q, k, v, weights = (jax.random.normal(jax.random.key(i), (2, tokens, heads, width)) for i in range(4))

    def both(way, dtype):
        def loss(*operands):
            y = attend(*operands)
            return (y.astype(jnp.float32) * weights).sum(), y

        with using(way) if way else nullcontext():
            gradients, y = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*(x.astype(dtype) for x in (q, k, v)))
        return y, gradients

    with jax.default_matmul_precision("highest"):
        expected = both("xla", jnp.float32)
    chosen = both(None, jnp.bfloat16)
    assert distance(chosen[0], expected[0]) < 1e-2
    assert distance(chosen[1], expected[1]) < 2e-2
