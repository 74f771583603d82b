"""Every operator that is linear has the adjoint of the dot-product test: Re⟨H x, y⟩ = Re⟨x, H* y⟩."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.physics.acquisition import Acquisition, acquire, acquired_shape, known_acquisitions, linear_part, named_acquisition
from jaxsr.physics.blur import excite, gaussian_blur
from jaxsr.physics.fields import bias_field
from jaxsr.physics.kspace import apply_window, fourier_resample, modulate_lines, partial_fourier, truncate
from jaxsr.physics.linear import LinearOperator, linear_operator, there_and_back
from jaxsr.physics.motion import draw_poses, ghost, move_during, rigid

VOLUME, SLICE = (9, 12, 10), (12, 10)
SIZE = (1.0, 1.3, 0.8)
POSES = draw_poses(jax.random.key(3), 2, 5.0, 2.0)

OPERATORS = {
    "truncation, coarse": (lambda x: fourier_resample(x, (5, 12, 6)), VOLUME, "real"),
    "truncation, zero-filled": (lambda x: truncate(x, (5, 12, 6)), VOLUME, "real"),
    "truncation of a slice by an ellipse": (lambda x: truncate(x, (6, 6), "ellipse"), SLICE, "real"),
    "truncation by a Hamming window": (lambda x: fourier_resample(x, (5, 12, 6), "hamming"), VOLUME, "real"),
    "zero filling": (lambda x: fourier_resample(x, (18, 13, 20)), VOLUME, "real"),
    "a Tukey window": (lambda x: apply_window(x, "tukey", (0, 2)), VOLUME, "complex"),
    "partial Fourier": (lambda x: partial_fourier(x, 0.7, 1), VOLUME, "real"),
    "partial Fourier of a complex slice": (lambda x: partial_fourier(x, 0.7, 1), SLICE, "complex"),
    "partial Fourier with conjugate filling": (lambda x: partial_fourier(x, 0.7, 1, "conjugate"), VOLUME, "real"),
    "conjugate filling of a complex volume": (lambda x: partial_fourier(x, 0.7, 0, "conjugate"), VOLUME, "complex"),
    "modulation of lines": (lambda x: modulate_lines(x, jnp.exp(1j * jnp.arange(12)), 1), VOLUME, "complex"),
    "point spread": (lambda x: gaussian_blur(x, (2.0, 3.0), (0, 1)), VOLUME, "real"),
    "rectangular slices with gaps": (lambda x: excite(x, "rectangular", 2.0, 3, 2), VOLUME, "real"),
    "sinc slices that overlap": (lambda x: excite(x, "sinc", 5.0, 4, 1), VOLUME, "real"),
    "Gaussian slices of a plane": (lambda x: excite(x, "gaussian", 2.5, 4, 1), SLICE, "real"),
    "bias field": (lambda x: x * bias_field(jax.random.key(0), VOLUME, 0.3), VOLUME, "real"),
    "a turn and a shift": (lambda x: rigid(x, (0.1, -0.2, 0.3), (1.0, 2.0, -1.0), SIZE), VOLUME, "real"),
    "a turn of a slice": (lambda x: rigid(x, (0.3,), (1.0, 2.0), SIZE[:2]), SLICE, "real"),
    "motion": (lambda x: move_during(lambda v: v, x, POSES, SIZE, 1), VOLUME, "real"),
    "ghosts": (lambda x: ghost(x, 3, 0.3 + 0.2j, 1), VOLUME, "real"),
}  # fmt: skip

EVERYTHING = Acquisition(
    voxel_size=(1.6, 2.0, 2.0),
    gap=0.5,
    slice_axis=2,
    profile="sinc",
    window="hamming",
    partial_fourier={"fraction": 0.75, "axis": 1, "fill": "conjugate"},
    blur=(1.0, 2.0),
    snr=(20.0, 30.0),
    bias=(0.1, 0.2),
    gamma=(0.5, 0.8),
    motion={"jumps": 2, "rotation": [2, 3], "axis": 1},
    ghosting={"every": 2, "intensity": [0.1, 0.2], "axis": 0},
)


def draw(seed, like):
    real, imaginary = jax.random.normal(jax.random.key(seed), (2, *like.shape))
    return (real + 1j * imaginary if jnp.issubdtype(like.dtype, jnp.complexfloating) else real).astype(like.dtype)


def assert_adjoint(operator: LinearOperator):
    """And the record's shapes and kinds of numbers are those that go in and come out."""
    x, y = draw(1, operator.source), draw(2, operator.target)
    forward, backward = operator.forward(x), operator.adjoint(y)
    assert (forward.shape, forward.dtype) == (operator.target.shape, operator.target.dtype)
    assert (backward.shape, backward.dtype) == (operator.source.shape, operator.source.dtype)
    scale = float(jnp.linalg.norm(forward) * jnp.linalg.norm(y))
    assert scale > 0
    assert float((jnp.vdot(forward, y) - jnp.vdot(x, backward)).real) == pytest.approx(0, abs=1e-5 * scale)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_dot_product_test_holds(name):
    forward, shape, kind = OPERATORS[name]
    assert_adjoint(linear_operator(forward, shape, jnp.complex64 if kind == "complex" else jnp.float32))


@pytest.mark.parametrize("window", ["box", "ellipse", "hamming"])
def test_there_and_back_is_one_operator_from_the_grid_to_itself(window):
    """Voxels of 2 × 1.3 × 1.6 mm over the same field of view; what was band-limited comes back as it was."""
    operator = there_and_back(VOLUME, SIZE, (2.0, 1.0, 1.6), window)
    assert operator.target.shape == VOLUME
    assert_adjoint(operator)
    x = draw(1, operator.source)
    once = operator.forward(x)
    np.testing.assert_allclose(once, truncate(x, (4, 12, 5), window), atol=1e-6)
    np.testing.assert_allclose(once.mean(), x.mean(), atol=1e-6)
    if window != "hamming":
        np.testing.assert_allclose(operator.forward(once), once, atol=2e-6)


def test_there_and_back_works_on_slices_and_batches_by_vmap():
    operator = there_and_back(SLICE, (1.0, 1.0), (2.0, 2.0))
    x = jax.random.normal(jax.random.key(0), (3, *SLICE))
    np.testing.assert_allclose(jax.vmap(operator.forward)(x)[1], operator.forward(x[1]), atol=1e-6)
    np.testing.assert_allclose(jax.vmap(operator.adjoint)(x)[1], operator.adjoint(x[1]), atol=1e-6)


@pytest.mark.parametrize("name", [*known_acquisitions(), "everything", "warp"])
def test_the_linear_part_of_an_acquisition_has_its_adjoint(name):
    others = {"everything": EVERYTHING, "warp": EVERYTHING.model_copy(update={"warp": (1.0, 2.0)})}
    acquisition = others[name] if name in others else named_acquisition(name)
    shape = (12, 16, 18)
    operator = linear_part(jax.random.key(5), shape, SIZE, acquisition)
    assert_adjoint(operator)
    if acquisition.settled:
        assert operator.target.shape == acquired_shape(shape, SIZE, acquisition)


def test_an_acquisition_without_noise_is_the_magnitude_of_its_linear_part_after_the_contrast():
    """The same key draws the same field, blur, poses and ghosts for both."""
    key = jax.random.key(5)
    some = EVERYTHING.model_copy(update={"motion": None, "gamma": (1.0, 1.0)})  # motion takes long to compile
    clean = some.model_copy(update={"snr": None})
    x = jax.random.uniform(jax.random.key(1), (12, 16, 18))
    operator = linear_part(key, x.shape, SIZE, some)
    np.testing.assert_allclose(acquire(key, x, SIZE, clean), jnp.abs(operator.forward(x)), atol=1e-5)
    faint = some.model_copy(update={"snr": (1e7, 1e7)})
    np.testing.assert_allclose(acquire(key, x, SIZE, faint), jnp.abs(operator.forward(x)), atol=1e-5)
