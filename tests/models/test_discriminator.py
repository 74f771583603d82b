"""Laws of the PatchGAN, and its published sizes."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.models.discriminator import PatchDiscriminator
from jaxsr.runtime.mesh import make_mesh, variable_shardings

TINY = {"width": 4, "layers": 2}


def made(network, *shape):
    """Random variables, drawn without compiling the initialisers."""
    rng = np.random.default_rng(0)
    abstract = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape)))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(leaf.size), jnp.float32), abstract)


@pytest.mark.parametrize("spectral", [True, False])
@pytest.mark.parametrize("layers, parameters", [(3, 2_762_689), (4, 2_762_689 + 16 * 512**2 + 512)])
def test_it_has_the_parameters_of_its_documentation_and_a_further_layer_is_no_wider(layers, parameters, spectral):
    network = PatchDiscriminator(layers=layers, spectral=spectral)
    variables = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 1))))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert set(variables) == ({"params", "spectral"} if spectral else {"params"})


@pytest.mark.parametrize("layers, published", [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_logit_sees_exactly_its_patch(layers, published):
    """Isola et al., App. 6.1.2: 16 × 16 and 70 × 70. By the gradient, which a leaky ReLU stops nowhere."""
    network, side = PatchDiscriminator(width=2, layers=layers, spectral=False), 2 ** (layers + 4)
    x = jax.random.normal(jax.random.key(0), (1, side, side, 1))
    variables = made(network, *x.shape)
    middle = (side // 2**layers - 2) // 2
    gradient = jax.jit(jax.grad(lambda x: network.apply(variables, x)[0, middle, middle, 0]))(x)
    rows, columns = np.nonzero(np.asarray(gradient[0, ..., 0]))
    assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == published == 9 * 2**layers - 2
    assert rows.size == published**2


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("height, width", [(24, 24), (25, 64), (31, 47)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_float32_one_a_patch(layers, height, width, dtype):
    network = PatchDiscriminator(width=4, layers=layers, dtype=dtype)
    x = jnp.zeros((2, height, width, 1))
    out, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), x)
    assert out.shape == (2, height // 2**layers - 2, width // 2**layers - 2, 1)
    assert out.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_a_slice_without_room_for_a_logit_is_refused_with_the_least_side():
    with pytest.raises(ValueError, match="at least 24 for 3 layers, got 23 × 64"):
        jax.eval_shape(PatchDiscriminator().init, jax.random.key(0), jnp.zeros((1, 23, 64, 1)))


def test_slices_of_a_batch_do_not_see_each_other_in_training():
    network, x = PatchDiscriminator(**TINY), jax.random.normal(jax.random.key(0), (3, 24, 24, 1))
    variables = made(network, *x.shape)
    apply = jax.jit(lambda x: network.apply(variables, x, train=True, mutable=["spectral"]))
    together, after = apply(x)
    alone, after_one = apply(x[:1])
    np.testing.assert_allclose(together[:1], alone, atol=1e-5 * np.abs(alone).max())
    jax.tree.map(np.testing.assert_array_equal, after, after_one)


def test_with_spectral_normalisation_the_weights_sizes_are_not_seen():
    """All twice as large; biases start at zero, and are seen."""
    network, x = PatchDiscriminator(**TINY), jax.random.normal(jax.random.key(0), (1, 24, 24, 1))
    variables = nn.meta.unbox(network.init(jax.random.key(1), x))
    larger = {**variables, "params": jax.tree.map(lambda leaf: 2 * leaf, variables["params"])}
    apply = jax.jit(network.apply)
    np.testing.assert_allclose(apply(larger, x), apply(variables, x), rtol=1e-4)
    assert jnp.abs(apply(variables, x)).max() > 1e-3


@pytest.mark.parametrize("spectral", [True, False])
def test_in_bfloat16_logits_and_gradients_are_those_of_float32_but_for_rounding(spectral):
    """By which some features come to lie on the other side of a leaky ReLU's corner: 8 % of the gradient by the first kernel."""
    x = jax.random.normal(jax.random.key(0), (2, 24, 24, 1))
    low, high = (PatchDiscriminator(**TINY, spectral=spectral, dtype=d) for d in (jnp.bfloat16, jnp.float32))
    variables = nn.meta.unbox(high.init(jax.random.key(1), x))

    def run(network):
        def total(params):
            logits = network.apply({**variables, "params": params}, x)
            return logits.sum(), logits

        return jax.jit(jax.grad(total, has_aux=True))(variables["params"])

    def close(ours, theirs, within):
        assert jnp.linalg.norm(ours - theirs) < within * jnp.linalg.norm(theirs)

    (by_low, of_low), (by_high, of_high) = run(low), run(high)
    close(of_low, of_high, 0.02)
    jax.tree.map(partial(close, within=0.15), by_low, by_high)


def test_it_can_be_laid_over_a_mesh_and_every_dimension_of_a_parameter_has_a_name():
    boxed = jax.eval_shape(PatchDiscriminator(**TINY).init, jax.random.key(0), jnp.zeros((1, 24, 24, 1)))
    assert jax.tree.structure(variable_shardings(make_mesh(), boxed)) == jax.tree.structure(nn.meta.unbox(boxed))
    for layer in boxed["params"].values():
        assert len(layer["kernel"].names) == 4
        assert len(layer["bias"].names) == 1
