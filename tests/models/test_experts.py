"""Laws of the three experts: what they answer, what each pixel of the answer sees, and how much they are."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AbstractMesh, AxisType

from jaxsr.bench.count import multiply_adds
from jaxsr.models.experts import EXPERTS, CortexExpert, JunctionExpert, SmoothExpert
from jaxsr.nn.attention import ChannelAttention, NonLocal
from jaxsr.nn.norm import GroupNorm
from jaxsr.runtime.mesh import AXES, variable_shardings

CHANNELS, CONDITION = 6, 3
TINY = {"width": 8, "groups": 4}
each_expert = pytest.mark.parametrize("kind", EXPERTS)


def inputs(batch=2, height=8, width=12, channels=CHANNELS):
    """z_t, condition, time."""
    keys = jax.random.split(jax.random.key(3))
    z_t = jax.random.normal(keys[0], (batch, height, width, channels))
    return z_t, jax.random.normal(keys[1], (batch, height, width, CONDITION)), jnp.linspace(40.0, 700.5, batch)


def drawn(network, *arguments, scale=0.3):
    """Random weights, also where they start at zero, without compiling the initialisers."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), *arguments))
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


@functools.cache
def tiny(kind):
    """A small expert, jitted, and weights for it."""
    network = kind(**TINY)
    return jax.jit(network.apply), drawn(network, *inputs())


def close(a, b, relative=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=relative * np.abs(b).max())


def differs(a, b):
    return np.abs(np.asarray(a) - b).max() > 1e-3 * np.abs(b).max()


# ------------------------------------------------------------------------------------------------ what it answers


@each_expert
def test_before_training_the_answer_is_zero_and_the_head_has_a_gradient(kind):
    network, arguments = kind(**TINY), inputs()
    apply, variables = tiny(kind)
    head = nn.meta.unbox(network.init(jax.random.key(0), *arguments))["params"]["head"]
    out = apply({"params": {**variables["params"], "head": head}}, *arguments)
    assert out.shape == arguments[0].shape
    assert (out == 0).all()
    answer = lambda head: apply({"params": {**variables["params"], "head": head}}, *arguments)  # noqa: E731
    gradient = jax.grad(lambda head: jnp.square(answer(head) - 1).sum())(head)
    assert np.abs(gradient["kernel"]).max() > 0


@each_expert
def test_slices_of_a_batch_do_not_see_each_other_and_each_sees_its_latents_its_condition_and_its_time(kind):
    apply, variables = tiny(kind)
    z_t, condition, time = inputs()
    out = apply(variables, z_t, condition, time)
    close(apply(variables, z_t.at[1].set(0), condition.at[1].set(0), time.at[1].set(3))[0], out[0])
    for other in ((z_t[::-1], condition, time), (z_t, condition[::-1], time), (z_t, condition, time[::-1])):
        assert differs(apply(variables, *other)[0], out[0])


@each_expert
def test_every_block_is_told_the_time(kind):
    """Each by itself: with the modulation of all others switched off, the answer still follows the time."""
    apply, variables = tiny(kind)
    flat = flatten_dict(variables, sep="/")
    modulations = {name.rpartition("/")[0] for name in flat if "/film/" in name or "/gain/" in name}
    around = {name.split("/")[1] for name in modulations}
    assert around == {name.split("/")[1] for name in flat if name.split("/")[1].startswith(("first", "edges", "middle"))} | {
        "down1",
        "down2",
        "up1",
        "up0",
    }
    for modulation in modulations:
        off = {n: 0 * a if n.rpartition("/")[0] in modulations - {modulation} else a for n, a in flat.items()}
        z_t, condition, time = inputs()
        answers = [apply(unflatten_dict(off, sep="/"), z_t, condition, t) for t in (time, time + 100)]
        assert np.abs(answers[0] - answers[1]).max() > 1e-4 * np.abs(answers[0]).max(), modulation


@each_expert
def test_what_enters_a_halving_is_added_to_what_leaves_its_doubling(kind):
    """With a doubling cut off, what lies below it means nothing, and what lies above still carries the latents."""
    apply, variables = tiny(kind)
    arguments = inputs()
    for doubling, below, above in (("up0_double", "down1_half", "stem"), ("up1_double", "down2_half", "down1_half")):
        cut = {**variables["params"], doubling: jax.tree.map(jnp.zeros_like, variables["params"][doubling])}
        turned = {name: {**cut, name: jax.tree.map(lambda leaf: leaf[::-1], cut[name])} for name in (below, above)}
        out = apply({"params": cut}, *arguments)
        np.testing.assert_array_equal(apply({"params": turned[below]}, *arguments), out)
        assert differs(apply({"params": turned[above]}, *arguments), out)


@pytest.mark.parametrize("width, rank", [(8, 8), (16, 12)])
def test_an_answer_has_no_more_dimensions_than_features_so_an_expert_as_wide_as_its_latents_can_answer_noise(width, rank):
    """Over all pixels, but for the head's bias: at 12 channels an expert of 8 features spans 8 dimensions, one of 16 all 12."""
    network, arguments = SmoothExpert(width=width, groups=4), inputs(channels=12)
    variables = drawn(network, *arguments)
    answers = np.asarray(jax.jit(network.apply)(variables, *arguments) - variables["params"]["head"]["bias"]).reshape(-1, 12)
    singular = np.linalg.svd(answers, compute_uv=False)
    assert (singular > 1e-5 * singular[0]).sum() == rank


@each_expert
def test_in_bfloat16_the_answer_and_the_parameters_are_float32_and_the_answer_is_that_of_float32_to_its_digits(kind):
    arguments, low = inputs(), kind(**TINY, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(low.init, jax.random.key(0), *arguments))} == {jnp.dtype(jnp.float32)}
    apply, _ = tiny(kind)
    variables = drawn(low, *arguments, scale=0.15)
    answers = [jax.jit(low.apply)(variables, *arguments), apply(variables, *arguments)]
    assert answers[0].dtype == jnp.float32
    close(*answers, relative=0.05)


@each_expert
def test_activations_computed_again_give_the_same_parameters_values_and_gradients(kind):
    arguments = inputs(batch=1, height=4, width=4)
    kept, again = (kind(**TINY, remat=remat) for remat in (False, True))
    variables = drawn(kept, *arguments)
    assert jax.tree.map(jnp.shape, drawn(again, *arguments)) == jax.tree.map(jnp.shape, variables)
    total = lambda network: jax.jit(jax.value_and_grad(lambda v: network.apply(v, *arguments).sum()))(variables)  # noqa: E731
    (value, gradients), (value_again, gradients_again) = total(kept), total(again)
    np.testing.assert_allclose(value_again, value, rtol=1e-4)
    largest = max(jnp.abs(g).max() for g in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), gradients_again, gradients)


@pytest.mark.parametrize("kind, blocks", [(SmoothExpert, 8), (CortexExpert, 5), (JunctionExpert, 11)])
def test_with_remat_every_block_is_computed_again(kind, blocks):
    """E_1: 6 residual, edges, dilated; E_2: 4 dense, complex; E_3: 5 convolution, 4 channel attention, residual, non-local."""
    arguments = inputs(batch=1, height=4, width=4)
    for remat in (False, True):
        network = kind(**TINY, remat=remat)
        variables = drawn(network, *arguments)
        assert str(jax.make_jaxpr(network.apply)(variables, *arguments)).count("= remat2[") == blocks * remat


@each_expert
@pytest.mark.parametrize("height, width", [(6, 8), (8, 9)])
def test_sides_that_are_not_multiples_of_four_are_refused(kind, height, width):
    with pytest.raises(ValueError, match=f"multiples of 4 for an expert, got {height} × {width}"):
        jax.eval_shape(kind(**TINY).init, jax.random.key(0), *inputs(height=height, width=width))


def test_a_condition_on_another_grid_is_refused_with_both():
    z_t, condition, time = inputs()
    with pytest.raises(ValueError, match=r"grid, \(2, 8, 12\), got \(2, 4, 12\): resize"):
        jax.eval_shape(SmoothExpert(**TINY).init, jax.random.key(0), z_t, condition[:, ::2], time)


# ------------------------------------------------------------------------------------------------ what a pixel of it sees

HEIGHT, ROW = 128, 61


def seen(network, *blind):
    """Rows of z_t that row `ROW` of the answer sees, where norms and `blind` modules pass on what they are given.

    Slice i has NaN in its row i, which makes NaN of all that sees it, however faintly. A norm's statistics, and the means of channel
    attention, join all pixels of a slice, whatever the field of the convolutions is.
    """
    z_t, condition, time = inputs(batch=HEIGHT, height=HEIGHT, width=4)
    z_t = z_t.at[jnp.arange(HEIGHT), jnp.arange(HEIGHT)].set(jnp.nan)
    variables = drawn(network, z_t, condition, time)

    def pass_on(next_function, args, kwargs, context):
        passes = isinstance(context.module, (GroupNorm, *blind)) and context.method_name == "__call__"
        return args[0] if passes else next_function(*args, **kwargs)

    with nn.intercept_methods(pass_on):
        answer = jax.jit(network.apply)(variables, z_t, condition, time)
    return np.flatnonzero(np.isnan(answer[:, ROW]).any((1, 2)))


def field(up0, up1, middle, down2, down1, first):
    """The rows that `ROW` sees by arithmetic, first and last, from how far each part looks: a 4 × 4 halving of stride 2 makes row i of rows
    2i − 1 … 2i + 2, a doubling row i of rows ⌈(i − 2) / 2⌉ … ⌊(i + 1) / 2⌋, the stem looks one row far."""
    low, high = ROW - up0, ROW + up0
    low, high = (low - 1) // 2 - up1, (high + 1) // 2 + up1
    low, high = (low - 1) // 2 - middle - down2, (high + 1) // 2 + middle + down2
    low, high = 2 * low - 1 - down1, 2 * high + 2 + down1
    low, high = 2 * low - 1 - first - 1, 2 * high + 2 + first + 1
    assert low > 0
    assert high < HEIGHT - 1  # or the border would be what is measured
    return np.arange(low, high + 1)


def test_dilation_enlarges_the_field_of_the_smooth_expert_by_four_pixels_each_way_at_the_same_size():
    """[§II.C.1] 'a dilated convolutional block in the bottleneck to enlarge the receptive field without increasing parameter count'."""
    wide, narrow = (SmoothExpert(**TINY, dilation=dilation) for dilation in (2, 1))
    np.testing.assert_array_equal(seen(narrow), field(up0=2, up1=2, middle=1 + 2, down2=2, down1=2, first=2 + 1))
    np.testing.assert_array_equal(seen(wide), field(up0=2, up1=2, middle=2 + 2, down2=2, down1=2, first=2 + 1))
    assert (seen(wide)[0], seen(wide)[-1]) == (seen(narrow)[0] - 4, seen(narrow)[-1] + 4)
    assert jax.tree.map(jnp.shape, drawn(wide, *inputs())) == jax.tree.map(jnp.shape, drawn(narrow, *inputs()))


def test_the_cortex_expert_is_local():
    """Four 3×3 layers a dense block, two complex convolutions in the middle."""
    np.testing.assert_array_equal(seen(CortexExpert(**TINY, growth=2)), field(up0=4, up1=4, middle=2, down2=4, down1=4, first=0))


def test_the_junction_expert_sees_everything_by_its_non_local_block_and_by_nothing_else():
    """[§II.C.3] 'models spatial correlations across distant regions'."""
    network = JunctionExpert(**TINY)
    np.testing.assert_array_equal(seen(network, ChannelAttention), np.arange(HEIGHT))
    local = field(up0=1, up1=1, middle=1 + 2, down2=1, down1=1, first=0)
    np.testing.assert_array_equal(seen(network, ChannelAttention, NonLocal), local)


# ------------------------------------------------------------------------------------------------ how much it is


def sizes():
    """Parameters and multiply-adds of each expert as it stands, for latents of 32 × 32 × 512 and a condition of 256 channels."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 32, 32, 512), (1, 32, 32, 256), (1,))]
    for kind in EXPERTS:
        out, variables = jax.eval_shape(kind().init_with_output, jax.random.key(0), *arguments)
        assert out.shape == arguments[0].shape
        yield sum(leaf.size for leaf in jax.tree.leaves(variables)), multiply_adds(kind().apply, variables, *arguments)


def test_the_sizes_are_those_of_the_table_and_near_the_paper_s():
    """spec: the heaviest within 10 % of 62.69 M, and all of the second phase, which has some ten million more, within 10 % of 133.02 M."""
    parameters, work = zip(*sizes(), strict=True)
    assert parameters == (57_311_744, 28_248_832, 43_017_600)
    assert [round(w / 1e9, 2) for w in work] == [19.42, 7.85, 10.98]
    assert max(parameters) == pytest.approx(62.69e6, rel=0.1)
    assert sum(parameters) + 10e6 == pytest.approx(133.02e6, rel=0.1)


@each_expert
def test_levels_are_as_wide_as_the_multipliers_say(kind):
    network = kind(width=8, multipliers=(1, 2, 4), groups=4)
    params = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), *inputs()))["params"]
    widths = {name: params[name]["kernel"].shape[-2:] for name in ("down1_half", "down2_half", "up1_double", "up0_double", "head")}
    assert widths == {"down1_half": (8, 16), "down2_half": (16, 32), "up1_double": (32, 16), "up0_double": (16, 8), "head": (8, CHANNELS)}


@each_expert
def test_every_kernel_is_split_over_tensor_by_its_outputs(kind):
    """And every name is in the table, or laying them over devices would be refused."""
    mesh = AbstractMesh((1, 1, 2, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    shardings = variable_shardings(mesh, jax.eval_shape(kind(width=32).init, jax.random.key(0), *inputs()))["params"]
    kernels = {
        name: tuple(s.spec) for name, s in flatten_dict(shardings, sep="/").items() if name.endswith(("kernel", "real", "imaginary"))
    }
    assert {spec[-1] for spec in kernels.values()} == {"tensor"}
    assert {axis for spec in kernels.values() for axis in spec[:-1]} == {None}
