"""Multiply-adds against what paper and pencil, and the papers' tables, give."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxsr.bench.count import OUTSIDE, count, count_part, describe, multiply_adds, operations, quantity
from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.config import ConfigError
from jaxsr.experiment import DataConfig, Experiment
from jaxsr.methods.autoencoder import AutoencoderConfig
from jaxsr.methods.base import Part
from jaxsr.methods.sr3 import Sr3Config, Sr3NetworkConfig
from jaxsr.models.sr3 import Sr3UNet

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = Sr3NetworkConfig(width=8, multipliers=(1, 2), blocks=1, attention_at=(2,), groups=4, dropout=0.0)
STUDENT = (1, 2, 2, 4, 4, 8, 8, 16)
PRODUCT = 3 * 4 * 5  # multiply-adds of a @ b
a, b = jnp.ones((3, 4)), jnp.ones((4, 5))


def experiment(network: Sr3NetworkConfig, crop: int = 32, **settings) -> Experiment:
    return Experiment(method=Sr3Config(network=network), data=DataConfig(crop=crop), **settings)


def convolve(image, kernel, **how):
    how = {"window_strides": (1, 1), "padding": "SAME", **how}
    return lax.conv_general_dilated(image, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **how)


def with_own_jvp(function):
    own = jax.custom_jvp(function)
    own.defjvp(lambda primals, tangents: (function(*primals), tangents[0]))
    return own


def with_own_vjp(function):
    own = jax.custom_vjp(function)
    own.defvjp(lambda *primals: (function(*primals), primals), lambda residuals, gradient: residuals)
    return own


@pytest.mark.parametrize(
    "network, size, giga, parameters",
    [
        (Sr3NetworkConfig(), 128, 46.12, 97_804_033),
        (Sr3NetworkConfig(multipliers=STUDENT, attention_at=(16,)), 256, 106.4, 271_420_673),
        (Sr3NetworkConfig(multipliers=STUDENT, blocks=3, attention_at=(4, 8, 16, 32)), 128, 38.17, 363_834_305),
    ],
    ids=["SR3", "student", "student of Table IV"],
)
def test_the_published_networks_have_their_published_size(network, size, giga, parameters):
    counted = count(experiment(network, size))
    assert (counted["parameters"], counted["parameter_bytes"]) == (parameters, 4 * parameters)
    assert counted["multiply_adds"] / 1e9 == pytest.approx(giga, abs=0.05 if giga > 100 else 0.005)


def test_sr3_with_three_channels_has_the_46_18_g_of_the_literature():
    network, image, level = (
        Sr3UNet(channels=3),
        jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.float32),
    )
    variables = jax.eval_shape(network.init, jax.random.key(0), image, image, level)
    counted = count_part(Part(network.apply, variables, (image, image, level)), [])
    assert counted["parameters"] == 97_807_491
    assert counted["multiply_adds"] / 1e9 == pytest.approx(46.18, abs=0.005)


def test_the_autoencoder_has_its_published_size_in_both_halves():
    """spec: 83,653,863 parameters; encode 136.4 G, decode 311.1 G at 256², attention included."""
    counted = count(Experiment(method=AutoencoderConfig(), data=DataConfig(crop=256)))
    assert (counted["parameters"], counted["notes"]) == (83_653_863, [])
    assert counted["parts"]["encoder"]["multiply_adds"] / 1e9 == pytest.approx(136.4, abs=0.05)
    assert counted["parts"]["decoder"]["multiply_adds"] / 1e9 == pytest.approx(311.1, abs=0.05)


def test_the_command_tells_the_published_counts_of_the_teacher_as_it_ships(capsys):
    """10-teacher.md, 'Counts that are unit tests', at a 32 × 32 latent with one token; guidance, which no published count has, apart."""
    assert run(lambda: app(["bench", "count", str(CONFIGS / "teacher.yaml"), "--json"], standalone_mode=False)) == 0
    counted = json.loads(capsys.readouterr().out)
    parts = counted["parts"]
    assert (counted["size"], counted["notes"]) == (256, [])
    told = dict(describe(counted))
    for name, parameters, giga in [
        ("denoiser", 859_532_484, 88.17),
        ("autoencoder", 83_653_863, 136.4 + 311.1),
        ("image encoder", 303_966_208, 81.0),
    ]:
        assert parts[name]["parameters"] == parameters
        assert parts[name]["multiply_adds"] / 1e9 == pytest.approx(giga, rel=1e-3)
        assert told[name].startswith(f"{parameters:,} parameters")
    guidance = [parts[f"guidance by {name}"] for name in ("bias", "gradient")]
    assert sum(part["parameters"] for part in guidance) == 8_952_256
    assert sum(part["multiply_adds"] for part in guidance) < 0.01 * parts["denoiser"]["multiply_adds"]


def test_counting_allocates_nothing():
    before = len(jax.live_arrays())
    count(experiment(TINY))
    assert len(jax.live_arrays()) - before < 8  # the noise schedule and a key or two


def test_a_matrix_product_multiplies_rows_columns_and_what_is_contracted():
    assert multiply_adds(jnp.matmul, a, b) == PRODUCT
    assert multiply_adds(lambda x, y: jnp.einsum("bij,bkj->bik", x, y), jnp.ones((7, 3, 4)), jnp.ones((7, 5, 4))) == 7 * PRODUCT


@pytest.mark.parametrize(
    "channels, kernel, how, expected",
    [
        (2, (3, 3, 2, 6), {}, 8 * 8 * 6 * 9 * 2),
        (2, (3, 3, 2, 6), {"window_strides": (2, 2)}, 4 * 4 * 6 * 9 * 2),
        (2, (3, 3, 2, 6), {"rhs_dilation": (2, 2)}, 8 * 8 * 6 * 9 * 2),
        (6, (3, 3, 1, 6), {"feature_group_count": 6}, 8 * 8 * 6 * 9),
        (4, (3, 3, 2, 6), {"feature_group_count": 2}, 8 * 8 * 6 * 9 * 2),
    ],
    ids=["plain", "strided", "dilated", "depthwise", "two groups"],
)
def test_a_convolution_multiplies_its_kernel_at_every_pixel_it_writes(channels, kernel, how, expected):
    assert multiply_adds(lambda x, k: convolve(x, k, **how), jnp.ones((1, 8, 8, channels)), jnp.ones(kernel)) == expected


@pytest.mark.parametrize("transform, shape, expected", [
    (jnp.fft.fft2, (3, 8, 16), 3 * 2.5 * 128 * 7),
    (jnp.fft.rfft2, (3, 8, 16), 3 * 1.25 * 128 * 7),
    (lambda x: jnp.fft.irfft(x, 8), (6, 5), 6 * 1.25 * 8 * 3),
])  # fmt: skip
def test_a_fourier_transform_counts_as_is_the_custom(transform, shape, expected):
    """5 N log₂ N operations of N complex numbers, two to a multiply-add; half where one side is real."""
    real = transform is jnp.fft.rfft2
    assert multiply_adds(transform, jax.ShapeDtypeStruct(shape, jnp.float32 if real else jnp.complex64)) == expected


def test_groups_of_the_batch_share_the_work():
    work = multiply_adds(lambda x, k: convolve(x, k, batch_group_count=2), jnp.ones((2, 8, 8, 2)), jnp.ones((3, 3, 2, 6)))
    assert work == 8 * 8 * 6 * 9 * 2


def test_a_transposed_convolution_takes_what_the_convolution_takes_that_it_transposes():
    image, kernel = jnp.ones((1, 16, 16, 3)), jnp.ones((4, 4, 3, 5))
    down = lambda x: convolve(x, kernel, window_strides=(2, 2))  # noqa: E731
    up = lambda y: jax.linear_transpose(down, image)(y)  # noqa: E731
    assert multiply_adds(up, down(image)) == multiply_adds(down, image) == 8 * 8 * 5 * 16 * 3


@pytest.mark.parametrize(
    "wrap",
    [jax.jit, jax.checkpoint, with_own_jvp, with_own_vjp, lambda f: lambda x, y: jax.vmap(f)(x[None], y[None])],
    ids=["jit", "checkpoint", "custom_jvp", "custom_vjp", "vmap"],
)
def test_work_is_seen_through_transformations(wrap):
    assert multiply_adds(wrap(lambda x, y: jnp.sin(x @ y)), a, b) == PRODUCT


def test_a_scan_counts_as_often_as_it_runs_also_within_another():
    square = jnp.ones((4, 4))
    inner = lambda x: lax.scan(lambda c, _: (c @ square, None), x, length=5)[0]  # noqa: E731
    assert multiply_adds(lambda x: lax.scan(lambda c, _: (inner(c), None), x, length=3)[0], square) == 3 * 5 * 4**3


def test_a_loop_of_known_length_is_a_scan():
    square = jnp.ones((4, 4))
    assert multiply_adds(lambda x: lax.fori_loop(0, 6, lambda i, c: c @ square, x), square) == 6 * 4**3


def test_of_a_cond_the_dearest_branch_counts():
    square = jnp.ones((4, 4))
    assert multiply_adds(lambda p, x: lax.cond(p, lambda x: x @ x @ x, lambda x: x, x), True, square) == 2 * 4**3


def test_a_loop_of_unknown_length_is_named_and_its_total_unknown():
    loop = lambda x: lax.while_loop(lambda c: c.sum() < 1e6, lambda c: c @ c, x)  # noqa: E731
    notes: list[str] = []
    (found,) = operations(jax.make_jaxpr(loop)(jnp.ones((4, 4))), notes)
    assert found.multiply_adds == 4**3
    assert "unknown number of times" in notes[0]
    assert multiply_adds(loop, jnp.ones((4, 4))) is None


def test_gradients_of_a_product_take_twice_the_product():
    loss = lambda x, y: jnp.square(x @ y).sum()  # noqa: E731
    assert multiply_adds(jax.grad(loss, (0, 1)), a, b) == 3 * PRODUCT


def test_submodules_sum_to_the_whole():
    part = count(experiment(TINY))["parts"]["denoiser"]
    for key in ("parameters", "multiply_adds"):
        assert sum(module[key] for module in part["modules"].values()) == part[key]
    assert OUTSIDE not in part["modules"]


def test_a_convolution_of_the_network_is_found_under_its_name():
    stem = count(experiment(TINY))["parts"]["denoiser"]["modules"]["stem"]
    assert stem == {"parameters": 9 * 2 * 8 + 8, "multiply_adds": 32 * 32 * 9 * 2 * 8}


def test_a_module_within_a_loop_or_jit_keeps_its_name():
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(4, name="inner")(x), None

    class Both(nn.Module):
        @nn.compact
        def __call__(self, x):
            looped = nn.scan(Body, variable_broadcast="params", split_rngs={"params": False}, length=3)(name="looped")
            x, _ = looped(x, None)
            return nn.jit(nn.Dense)(5, name="compiled")(x)

    variables = jax.eval_shape(Both().init, jax.random.key(0), a)
    modules = count_part(Part(Both().apply, variables, (a,)), [])["modules"]
    assert {name: of["multiply_adds"] for name, of in modules.items()} == {"looped": 3 * 3 * 4 * 4, "compiled": PRODUCT}


def test_half_precision_halves_the_activations_of_the_layers_it_is_used_in():
    """All but the last, which is float32 always, and softmax's arguments: this network has none."""
    plain = TINY.model_copy(update={"attention_at": (), "middle_attention": False})
    full, half = (count(experiment(plain, precision=p))["activation_bytes"] for p in ("f32", "bf16"))
    assert full / 2 <= half < 0.6 * full


def test_a_size_that_the_network_does_not_take_is_refused():
    with pytest.raises(ConfigError, match="multiple of 2 for this network, got 33"):
        count(experiment(TINY), 33)


def test_the_result_is_json_and_has_a_table():
    counted = count(experiment(TINY), 16)
    assert json.loads(json.dumps(counted)) == counted
    assert ("parameters", f"{counted['parameters']:,}") in describe(counted)


@pytest.mark.parametrize(
    "value, unit, base, text",
    [
        (46_120_087_552, "", 1000, "46.12 G"),
        (0, "", 1000, "0"),
        (1000, "FLOP/s", 1000, "1 kFLOP/s"),
        (2**20, "B", 1024, "1 MiB"),
        (None, "", 1000, "unknown"),
    ],
)
def test_quantities_are_told_to_four_digits(value, unit, base, text):
    assert quantity(value, unit, base) == text
