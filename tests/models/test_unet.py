"""Laws of the latent UNet, and its published size."""

import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh, AxisType

from jaxsr.bench.count import multiply_adds
from jaxsr.models.unet import LatentUNet
from jaxsr.runtime.mesh import AXES, variable_shardings

TINY = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention_at": (1,), "heads": 2, "context_width": 6, "groups": 4}
MESHES = [{"data": 2, "fsdp": 4}, {"data": 4, "tensor": 2}, {"data": 1, "fsdp": 4, "tensor": 2}]
SHAPES = [(2, 4, 4, 8), (2, 2, 2, 16)]  # of guidance, for what `inputs` gives


def inputs(tokens=3, channels=5, batch=2):
    """x, time, context."""
    keys = jax.random.split(jax.random.key(3))
    context = jax.random.normal(keys[1], (batch, tokens, 6))
    return jax.random.normal(keys[0], (batch, 4, 4, channels)), jnp.linspace(0.0, 700.5, batch), context


def drawn(network, *arguments, scale=0.2):
    """Random weights, also where they start at zero, without compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), *arguments))
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def tiny():
    """A small network jitted with its weights."""
    network = LatentUNet(**TINY)
    return jax.jit(lambda *arguments, v=drawn(network, *inputs()): network.apply(v, *arguments))


def close(a, b, relative=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=relative * np.abs(b).max())


def differs(a, b):
    return np.abs(np.asarray(a) - b).max() > 1e-3 * np.abs(b).max()


@pytest.mark.parametrize("tokens, giga", [(1, 88.17), (77, 90.07)])
def test_the_published_network_has_exactly_its_published_size(tokens, giga):
    """spec: 859,532,484 parameters with 8 channels in and a context of 768 features; 88.17 G or 90.07 G multiply-adds at 32 × 32."""
    shapes = ((1, 32, 32, 8), (1,), (1, tokens, 768))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    out, variables = jax.eval_shape(LatentUNet().init_with_output, jax.random.key(0), *arguments)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 859_532_484
    assert len(jax.tree.leaves(variables)) == 686
    assert out.shape == (1, 32, 32, 4)
    assert multiply_adds(LatentUNet().apply, variables, *arguments) / 1e9 == pytest.approx(giga, abs=0.005)


def test_in_bfloat16_the_answer_and_the_parameters_are_float32_and_the_answer_is_that_of_float32_to_its_digits():
    arguments = inputs()
    networks = [LatentUNet(**TINY, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)]
    shapes = jax.eval_shape(networks[1].init, jax.random.key(0), *arguments)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    variables = drawn(networks[1], *arguments)
    high, low = (jax.jit(network.apply)(variables, *arguments) for network in networks)
    assert low.dtype == jnp.float32
    assert np.isfinite(low).all()
    close(low, high, relative=0.05)


@pytest.mark.parametrize("height, width", [(9, 8), (8, 6)])
def test_sides_that_do_not_divide_are_refused_with_the_multiple(height, width):
    network = LatentUNet(**{**TINY, "multipliers": (1, 1, 1)})
    with pytest.raises(ValueError, match=f"multiples of 4 for 3 levels, got {height} × {width}"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, height, width, 8)), jnp.zeros(1))


def test_slices_of_a_batch_do_not_see_each_other_and_each_sees_its_time_and_its_context(tiny):
    x, time, context = inputs()
    out = tiny(x, time, context)
    close(tiny(x.at[1].set(0), time.at[1].set(3), context.at[1].set(0))[0], out[0])
    assert differs(tiny(x, time[::-1], context)[0], out[0])
    assert differs(tiny(x, time, context[::-1])[0], out[0])


def test_the_order_of_the_context_s_tokens_means_nothing(tiny):
    x, time, context = inputs()
    close(tiny(x, time, context[:, ::-1]), tiny(x, time, context))


def test_time_is_real_valued_half_a_step_is_half_the_change(tiny):
    """The network is smooth in time: f(t + δ) − f(t) → δ f'(t). A time that were rounded or looked up would jump, or not move."""
    x, time, context = inputs()
    out = tiny(x, time + 100.3, context)
    small, large = (tiny(x, time + 100.3 + delta, context) - out for delta in (1 / 128, 1 / 64))
    assert np.abs(small).max() > 1e-4 * np.abs(out).max()
    close(2 * small, large, relative=0.05)


def test_no_context_is_one_token_of_zeros_of_which_only_the_bias_is_left(tiny):
    """The same parameters as with one, so a network may have it at times; queries, keys and values of it do not matter."""
    x, time, context = inputs()
    network = LatentUNet(**TINY)
    variables = drawn(network, x, time)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, drawn(network, x, time, context))
    out = jax.jit(network.apply)(variables, x, time)
    close(tiny(x, time, jnp.zeros((2, 1, 6))), out)
    assert differs(tiny(x, time, context), out)
    others = jax.tree.map_with_path(
        lambda path, leaf: 2 * leaf if {"cross", "kernel"} <= {key.key for key in path} and "out" not in path[-2].key else leaf, variables
    )
    assert not jax.tree.all(jax.tree.map(np.array_equal, others, variables))
    close(jax.jit(network.apply)(others, x, time), out)


def test_guidance_of_zeros_is_exactly_no_guidance():
    """Operation by operation, so that both ways are the same programs: adding zero changes no bit."""
    network, arguments = LatentUNet(**TINY), inputs(batch=1)
    variables = drawn(network, *arguments)
    zeros = tuple(jnp.zeros((1, *shape[1:])) for shape in SHAPES)
    np.testing.assert_array_equal(network.apply(variables, *arguments, zeros, zeros), network.apply(variables, *arguments))


@pytest.mark.parametrize("way", ["down", "up"])
def test_guidance_enters_where_it_is_said_to(way):
    """b reaches all of the way down but what is before it, so every skip but the stem's; g none of the way down."""
    arguments = inputs()
    network = LatentUNet(**{**TINY, "blocks": 2, "attention_at": ()})

    @jax.jit
    def outputs(guidance, variables):
        _, state = network.apply(variables, *arguments, **{way: guidance}, capture_intermediates=True)
        return {name: found["__call__"][0] for name, found in state["intermediates"].items() if "__call__" in found}

    variables = drawn(network, *arguments)
    zeros = tuple(jnp.zeros(shape) for shape in SHAPES)
    plain = outputs(zeros, variables)
    down, up = [["down0_0", "down0_1", "down0_half"], ["down1_0", "down1_1"]], ["up0_0", "up0_1", "up0_2", "norm", "out"]
    after = {  # what changes where guidance is added to level 0 or to level 1: all after the first block of the level
        ("down", 0): {"down0_1", "down0_half", *down[1]},
        ("down", 1): {"down1_1"},
        ("up", 0): set(up) - {"up0_0"},
        ("up", 1): {"up1_1", "up1_2", "up1_double", *up},
    }
    for level, shape in enumerate(SHAPES):
        guided = outputs(tuple(jnp.full(shape, 3.0) if i == level else z for i, z in enumerate(zeros)), variables)
        changed = {name for name in plain if differs(guided[name], plain[name])}
        late = {name for name in plain if name.startswith(("middle", "up")) or name in up}
        assert changed == after[way, level] | (late if way == "down" else set()), level


def test_guidance_of_other_shapes_is_refused_with_both():
    network, arguments = LatentUNet(**TINY), inputs()
    wrong = (jnp.zeros(SHAPES[0]), jnp.zeros((2, 2, 2, 8)))
    for residuals in (wrong, wrong[:1]):
        with pytest.raises(ValueError, match=r"guidance up must have the shapes \[\(2, 4, 4, 8\), \(2, 2, 2, 16\)\], got"):
            jax.eval_shape(lambda r: network.init(jax.random.key(0), *arguments, up=r), residuals)


def test_activations_computed_again_give_the_same_parameters_values_and_gradients():
    arguments = inputs(batch=1)
    kept, again = (LatentUNet(**TINY, remat=remat) for remat in (False, True))
    variables = drawn(kept, *arguments)
    assert jax.tree.map(jnp.shape, drawn(again, *arguments)) == jax.tree.map(jnp.shape, variables)
    total = lambda network: jax.jit(jax.value_and_grad(lambda v: network.apply(v, *arguments).sum()))(variables)  # noqa: E731
    (value, gradients), (value_again, gradients_again) = total(kept), total(again)
    np.testing.assert_allclose(value_again, value, rtol=1e-5)
    largest = max(jnp.abs(g).max() for g in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), gradients_again, gradients)


def test_with_remat_every_block_and_every_transformer_is_computed_again():
    arguments = inputs(batch=1)

    def recomputed(network):
        variables = drawn(network, *arguments)
        return str(jax.make_jaxpr(lambda v: network.apply(v, *arguments))(variables)).count("= remat2[")

    assert recomputed(LatentUNet(**TINY, remat=False)) == 0
    assert recomputed(LatentUNet(**TINY, remat=True)) == 8 + 4  # residual blocks: 2 down, 2 in the middle, 4 up; transformers: 1, 1, 2


def test_every_kernel_of_attention_and_feed_forward_is_split_over_tensor():
    """By its outputs; and every name is in the table, or laying them over devices would be refused."""
    mesh = AbstractMesh((1, 1, 2, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    shardings = variable_shardings(mesh, jax.eval_shape(LatentUNet(**TINY).init, jax.random.key(0), *inputs()))["params"]
    specs = {name: tuple(s.spec) for name, s in flatten_dict(shardings, sep="/").items() if "/block0/" in name and "kernel" in name}
    assert {name.split("/")[-2] for name in specs} == {"query", "key", "value", "in", "out"}
    assert set(specs.values()) == {(None, "tensor")}


EIGHT_DEVICES = f"""
import json
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
from jaxsr.models.unet import LatentUNet
import jaxsr.runtime.mesh as meshes

assert jax.device_count() == 8
meshes.FSDP_FLOOR = 64  # so that a network this small is split
network = LatentUNet(**{TINY!r})
keys = jax.random.split(jax.random.key(3), 3)
guidance = tuple(jax.random.normal(keys[2], shape) for shape in [(8, 4, 4, 8), (8, 2, 2, 16)])
batch = (jax.random.normal(keys[0], (8, 4, 4, 5)), jnp.linspace(0, 700.5, 8), jax.random.normal(keys[1], (8, 3, 6)), guidance, guidance)
boxed = jax.eval_shape(network.init, jax.random.key(0), *batch)
rng = np.random.default_rng(0)
variables = jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32), nn.meta.unbox(boxed))

def loss(variables, batch):
    out = network.apply(variables, *batch)
    return jnp.square(out).mean(), out

def run(mesh):
    shardings = meshes.variable_shardings(mesh, boxed)
    placed, inputs = jax.device_put(variables, shardings), jax.device_put(batch, meshes.batch_sharding(mesh))
    results = ((meshes.replicated(mesh), meshes.batch_sharding(mesh)), shardings)
    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True), out_shardings=results)(placed, inputs)
    return jax.device_get((out, gradients)), sorted({{axis for s in jax.tree.leaves(shardings) for axis in s.spec if axis}})

def error(found, expected):
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    return float(max(np.abs(a - b).max() for a, b in zip(found, expected)) / max(np.abs(b).max() for b in expected))

axes = (meshes.AxisType.Auto,) * 4
one, _ = run(jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), meshes.AXES, axis_types=axes))
for sizes in {MESHES!r}:
    eight, split = run(meshes.make_mesh(**sizes))
    print(json.dumps([split, error(eight[0], one[0]), error(eight[1], one[1])]))
"""


@pytest.fixture(scope="module")
def on_eight_devices():
    """For every mesh: over which axes parameters were split, and how far values and gradients lie from those on one device."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", EIGHT_DEVICES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow  # its layers are held to it in tests/runtime/test_mesh_gradients.py
@pytest.mark.parametrize("k", range(len(MESHES)), ids=str)
def test_on_eight_devices_values_and_gradients_are_those_on_one(on_eight_devices, k):
    """Slices over `data` and `fsdp`, parameters over `fsdp` and `tensor`; to float32 rounding, relative to the largest."""
    split, values, gradients = on_eight_devices[k]
    assert split == [axis for axis in ("fsdp", "tensor") if axis in MESHES[k]]
    assert values < 1e-5
    assert gradients < 1e-5
