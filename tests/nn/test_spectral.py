"""Laws of a convolution whose kernel is normalised by its largest singular value."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.nn.convolution import KERNEL, conv
from jaxsr.nn.spectral import SpectralConv
from jaxsr.runtime.mesh import make_mesh, variable_shardings

LAYER = SpectralConv(6, 4, stride=2, padding=(1, 1))
X = jax.random.normal(jax.random.key(0), (2, 8, 10, 3))


@pytest.fixture(scope="module")
def variables():
    return nn.meta.unbox(jax.jit(LAYER.init)(jax.random.key(1), X))


@jax.jit
def step(variables, x=X):
    out, after = LAYER.apply(variables, x, train=True, mutable=["spectral"])
    return out, {**variables, **after}


def singular_values(kernel):
    return np.linalg.svd(np.asarray(kernel).reshape(-1, kernel.shape[-1]), compute_uv=False)


def test_after_many_iterations_it_is_a_convolution_whose_kernel_has_a_largest_singular_value_of_one(variables):
    for _ in range(200):
        out, variables = step(variables)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    normalised = kernel / singular_values(kernel)[0]
    expected = conv(6, 4, stride=2, padding=(1, 1)).apply({"params": {"kernel": normalised, "bias": bias}}, X)
    np.testing.assert_allclose(singular_values(normalised)[0], 1, rtol=1e-6)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_it_starts_near_the_largest_singular_value(variables):
    kernel, (u, v) = variables["params"]["kernel"], (variables["spectral"][name] for name in "uv")
    sigma = v @ kernel.reshape(-1, 6) @ u
    assert 0.9 * singular_values(kernel)[0] < sigma < (1 + 1e-6) * singular_values(kernel)[0]


def test_the_size_of_the_kernel_is_not_seen(variables):
    larger = {**variables, "params": {**variables["params"], "kernel": 7 * variables["params"]["kernel"]}}
    np.testing.assert_allclose(step(larger)[0], step(variables)[0], atol=1e-5)


def test_the_gradient_by_the_kernel_is_at_right_angles_to_it(variables):
    """What Euler's theorem says of any function that does not see the kernel's size: that ∂σ/∂W = u vᵀ is not left out."""

    def total(kernel):
        changed = {**variables, "params": {**variables["params"], "kernel": kernel}}
        return jnp.sin(LAYER.apply(changed, X)).sum()

    kernel = variables["params"]["kernel"]
    gradient = jax.jit(jax.grad(total))(kernel)
    assert abs((gradient * kernel).sum()) < 1e-5 * jnp.linalg.norm(gradient) * jnp.linalg.norm(kernel)
    assert jnp.linalg.norm(gradient) > 1


@pytest.mark.parametrize("size, stride", [(4, 2), (4, 1), (3, 1), (1, 1), (3, 2)])
def test_a_map_lengthens_what_it_is_shown_at_most_as_often_as_its_patches_overlap(size, stride):
    """By power iteration on the map itself, ∂f/∂x and its transpose."""
    layer, shape = SpectralConv(3, size, stride, (size // 2, size // 2)), (1, 12, 12, 2)
    variables = nn.meta.unbox(layer.init(jax.random.key(2), jnp.zeros(shape)))
    variables["spectral"]["v"], variables["spectral"]["u"] = _singular_vectors(variables["params"]["kernel"])

    def linear(x):
        return layer.apply(variables, x)  # its bias starts at zero

    def iterate(_, x):
        x = jax.vjp(linear, x)[1](linear(x))[0]
        return x / jnp.linalg.norm(x)

    x = jax.lax.fori_loop(0, 100, iterate, jax.random.normal(jax.random.key(3), shape))
    norm = jnp.linalg.norm(linear(x)) / jnp.linalg.norm(x)
    assert 0.5 < norm <= (1 + 1e-5) * -(-size // stride)


def _singular_vectors(kernel):
    v, _, u = np.linalg.svd(np.asarray(kernel).reshape(-1, kernel.shape[-1]), full_matrices=False)
    return jnp.asarray(v[:, 0]), jnp.asarray(u[0])


def test_evaluation_changes_no_statistic_and_training_changes_both(variables):
    kernel = variables["params"]["kernel"]
    moved = {**variables, "params": {**variables["params"], "kernel": kernel + 0.1 * kernel[::-1]}}
    _, after = LAYER.apply(moved, X, mutable=["spectral"])
    jax.tree.map(np.testing.assert_array_equal, after["spectral"], variables["spectral"])
    _, after = step(moved)
    for name in "uv":
        assert jnp.abs(after["spectral"][name] - variables["spectral"][name]).max() > 1e-3


def test_a_step_and_the_evaluation_after_it_are_the_same_function(variables):
    out, after = step(variables)
    np.testing.assert_allclose(LAYER.apply(after, X), out, atol=1e-6)


def test_statistics_are_the_same_whatever_is_shown_and_in_whatever_precision(variables):
    _, expected = step(variables)
    for x in (X[:1], 100 * X, jnp.full_like(X, jnp.nan)):
        jax.tree.map(np.testing.assert_array_equal, step(variables, x)[1]["spectral"], expected["spectral"])
    low = SpectralConv(6, 4, stride=2, padding=(1, 1), dtype=jnp.bfloat16)
    out, after = jax.jit(lambda v: low.apply(v, X, train=True, mutable=["spectral"]))(variables)
    assert out.dtype == jnp.bfloat16
    assert jnp.isfinite(out).all()
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype(jnp.float32)}
    jax.tree.map(np.testing.assert_array_equal, after["spectral"], expected["spectral"])


def test_its_parameters_are_those_of_a_convolution_names_and_values():
    """So that a network with spectral normalisation can be compared with one without."""
    ours, theirs = (m.init(jax.random.key(1), X)["params"] for m in (LAYER, conv(6, 4, stride=2, padding=(1, 1))))
    assert ours["kernel"].names == KERNEL
    assert ours["bias"].names == KERNEL[-1:]
    jax.tree.map(np.testing.assert_array_equal, nn.meta.unbox(ours), nn.meta.unbox(theirs))


def test_it_can_be_laid_over_a_mesh():
    boxed = jax.eval_shape(LAYER.init, jax.random.key(0), X)
    shardings = variable_shardings(make_mesh(), boxed)
    assert jax.tree.structure(shardings) == jax.tree.structure(nn.meta.unbox(boxed))
    assert boxed["spectral"]["u"].shape == (6,)
    assert boxed["spectral"]["v"].shape == (4 * 4 * 3,)
