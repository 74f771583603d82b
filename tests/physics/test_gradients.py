"""Laws of gradient nonlinearity: the harmonics, the coefficient file, warping and its inverse."""

from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxsr.physics.gradients import (
    EXAMPLE_COIL,
    Coil,
    displacement,
    invert,
    log_jacobian,
    parse_coefficients,
    random_displacement,
    turn_axes,
    unwarp,
    warp,
)

SHAPE, SIZE = (30, 36, 28), (4.0, 4.5, 5.0)
POINTS = np.random.default_rng(0).uniform(-150, 150, (40, 3)).astype(np.float32)
CENTRE = (slice(4, -4),) * 3


def field(strength=15.0, seed=0):
    return random_displacement(jax.random.key(seed), SHAPE, SIZE, strength)


def phantom():
    """A smooth head-sized blob with structure of 50 mm, near zero at the edge of the volume."""
    x, y, z = (
        np.reshape((np.arange(n) - (n - 1) / 2) * d, shape)
        for n, d, shape in zip(SHAPE, SIZE, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True)
    )
    envelope = np.exp(-((x / 22) ** 2 + (y / 28) ** 2 + (z / 25) ** 2))
    return jnp.asarray(envelope * (2 + np.cos(x / 8) + np.cos(y / 9) * np.cos(z / 8)), jnp.float32)


# -------------------------------------------------------------------------------------------------------------------- harmonics


def one_term(kind, n, m, axis, radius=250.0):
    table = np.zeros((2, 3, n + 1, n + 1))
    table["AB".index(kind), axis, n, m] = 1
    return Coil(*table, radius)


@pytest.mark.parametrize("order", [2, 5, 9])
def test_the_field_is_the_sum_of_legendre_functions_of_scipy_in_siemens_norm(order):
    cosine, sine = np.random.default_rng(order).normal(size=(2, 3, order + 1, order + 1))
    x, y, z = POINTS.T.astype(np.float64)
    r, phi = np.sqrt(x**2 + y**2 + z**2), np.arctan2(y, x)
    expected = np.zeros_like(POINTS, np.float64)
    for n in range(2, order + 1):
        for m in range(n + 1):
            norm = (-1) ** m * np.sqrt((2 * n + 1) * factorial(n - m) / (2 * factorial(n + m))) if m else 1
            radial = (r / 250) ** n * norm * special.lpmv(m, n, z / r)
            expected += 250 * radial[:, None] * (cosine[:, n, m] * np.cos(m * phi)[:, None] + sine[:, n, m] * np.sin(m * phi)[:, None])
    np.testing.assert_allclose(displacement(Coil(cosine, sine, 250.0), POINTS), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "kind, n, m, closed",
    [
        ("A", 2, 0, lambda x, y, z: z**2 - (x**2 + y**2) / 2),
        ("A", 3, 0, lambda x, y, z: z**3 - 1.5 * z * (x**2 + y**2)),
        ("A", 3, 1, lambda x, y, z: np.sqrt(7 / 24) * 1.5 * x * (4 * z**2 - x**2 - y**2)),
        ("B", 3, 1, lambda x, y, z: np.sqrt(7 / 24) * 1.5 * y * (4 * z**2 - x**2 - y**2)),
        ("A", 3, 3, lambda x, y, z: np.sqrt(7 / 1440) * 15 * (x**3 - 3 * x * y**2)),
        ("B", 2, 2, lambda x, y, z: np.sqrt(5 / 48) * 3 * 2 * x * y),
    ],
)
def test_low_orders_are_their_polynomials(kind, n, m, closed):
    x, y, z = POINTS.T.astype(np.float64) / 250
    expected = np.zeros_like(POINTS)
    expected[:, 1] = 250 * closed(x, y, z)
    np.testing.assert_allclose(displacement(one_term(kind, n, m, 1), POINTS), expected, atol=1e-4)


@pytest.mark.parametrize("kind, n, m", [("A", 0, 0), ("A", 1, 0), ("A", 1, 1), ("B", 1, 1)])
def test_a_shift_and_the_ideal_gradient_are_no_distortion(kind, n, m):
    assert (displacement(one_term(kind, n, m, 2), POINTS) == 0).all()


def test_each_component_solves_laplace_as_a_magnetic_field_must():
    """∇²u = 0, from second derivatives of the program itself; relative to the largest of them."""
    hessian = jax.vmap(jax.hessian(lambda p: displacement(EXAMPLE_COIL, p)))(jnp.asarray(POINTS))  # [points, 3, 3, 3]
    assert jnp.abs(jnp.trace(hessian, axis1=2, axis2=3)).max() < 1e-4 * jnp.abs(hessian).max()


def test_the_example_is_a_whole_body_coil_some_millimetres_off_far_from_the_isocentre():
    far = displacement(EXAMPLE_COIL, 150 * np.eye(3))
    assert (jnp.linalg.norm(far, axis=1) > 1).all()
    assert (jnp.linalg.norm(far, axis=1) < 6).all()
    assert (displacement(EXAMPLE_COIL, np.zeros(3)) == 0).all()


def test_turning_the_axes_is_a_rotation_and_its_own_inverse():
    assert (turn_axes(turn_axes(jnp.asarray(POINTS))) == POINTS).all()
    assert np.linalg.det(turn_axes(jnp.eye(3))) == pytest.approx(1)


def test_random_fields_have_the_stated_largest_displacement_and_differ():
    first, second = field(seed=0), field(seed=1)
    for one in (first, second):
        assert jnp.linalg.norm(one, axis=-1).max() == pytest.approx(15, rel=1e-5)
    assert jnp.abs(first - second).max() > 1


# -------------------------------------------------------------------------------------------------------------------- warping


def test_unwarp_undoes_warp():
    """To 0.03 % of the largest intensity, after two interpolations of structure of 50 mm on voxels of 4 to 5 mm."""
    head, u = phantom(), field()
    back = unwarp(warp(head, u, SIZE), u, SIZE)
    assert jnp.abs(back - head)[CENTRE].max() < 3e-4 * head.max()
    assert jnp.abs(warp(head, u, SIZE) - head).max() > 0.01 * head.max()


def test_the_inverse_field_leads_back():
    """u(r) + v(r + u(r)) = 0 to 0.05 mm inside of 15, u and v both read linearly on voxels of 4 to 5 mm."""
    from jaxsr.physics.gradients import _positions, _read_linear

    u = field()
    v = invert(u, SIZE)
    there = _positions(u, SIZE)
    assert jnp.abs(u + _read_linear(v, there))[CENTRE].max() < 0.05
    assert jnp.abs(u + v).max() > 1


def test_signal_is_conserved():
    """The whole signal of a head inside the volume is the same before and after, to 3e-4; without the Jacobian it is not."""
    head, u = phantom(), field()
    assert warp(head, u, SIZE).sum() == pytest.approx(float(head.sum()), rel=3e-4)
    assert unwarp(head, u, SIZE).sum() == pytest.approx(float(head.sum()), rel=3e-4)
    assert warp(head, u, SIZE, jacobian=False).sum() != pytest.approx(float(head.sum()), rel=5e-3)


def test_no_field_changes_nothing():
    """Not even by interpolation: the spline passes through the voxels."""
    noise = jax.random.normal(jax.random.key(0), SHAPE)
    none = jnp.zeros((*SHAPE, 3))
    np.testing.assert_allclose(warp(noise, none, SIZE), noise, atol=1e-5)
    assert (log_jacobian(none, SIZE) == 0).all()


def test_a_shift_by_whole_voxels_moves_the_image_against_it():
    noise = jax.random.normal(jax.random.key(0), SHAPE)
    shift = jnp.broadcast_to(jnp.array([2 * SIZE[0], 0.0, 0.0]), (*SHAPE, 3))
    np.testing.assert_allclose(warp(noise, shift, SIZE)[3:], noise[1:-2], atol=1e-5)


@pytest.mark.parametrize("function", [warp, unwarp])
def test_it_is_linear_in_the_volume_and_has_its_adjoint(function):
    """⟨W x, y⟩ = ⟨x, Wᵀ y⟩, the transpose that JAX derives."""
    u = field()
    x, y = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    forward = lambda v: function(v, u, SIZE)  # noqa: E731
    (adjoint,) = jax.linear_transpose(forward, x)(y)
    assert jnp.vdot(forward(x), y) == pytest.approx(float(jnp.vdot(x, adjoint)), rel=1e-3, abs=0.05)
    np.testing.assert_allclose(forward(2 * x - y), 2 * forward(x) - forward(y), atol=1e-4)


def test_the_jacobian_is_that_of_the_harmonics():
    """Differences on the grid against the derivative of the closed form, to 1 % of the largest; second order in the voxel size."""
    axes = [(np.arange(n) - (n - 1) / 2) * d for n, d in zip(SHAPE, SIZE, strict=True)]
    points = jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), -1), jnp.float32)
    gradient = jax.vmap(jax.jacfwd(lambda p: displacement(EXAMPLE_COIL, p)))(points.reshape(-1, 3))
    expected = jnp.linalg.slogdet(jnp.eye(3) + gradient)[1].reshape(SHAPE)
    found = log_jacobian(displacement(EXAMPLE_COIL, points), SIZE)
    assert jnp.abs(found - expected)[CENTRE].max() < 0.01 * jnp.abs(expected).max()
    assert jnp.abs(found - expected).max() < 0.05 * jnp.abs(expected).max()


def test_uniform_stretching_thins_the_signal_by_its_volume():
    axes = [(np.arange(n) - (n - 1) / 2) * d for n, d in zip(SHAPE, SIZE, strict=True)]
    points = jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), -1), jnp.float32)
    np.testing.assert_allclose(log_jacobian(0.02 * points, SIZE), 3 * np.log(1.02), atol=1e-5)
    np.testing.assert_allclose(warp(jnp.ones(SHAPE), 0.02 * points, SIZE)[CENTRE], 1.02**-3, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------------- files

HEAD = """#*[ Script ****************************************************************\\
#  Name: coeff_XX00.grad
#*/
 PHANTOM , Gradientsystem GC00 , made up
 win_low = 0, win_high = 0, win_algo = 0, win_dummy = 2;
 0.250 m = R0, lnorm = 4; A(n,m) and B(n,m) are coefficients
 0 = CoSyMode
 Expansion in Spherical Harmonics
 ================================
 NO.    TYPE             SPECTRUM                          AXIS

"""
TERMS = """   1   A( 3, 0)      -0.08000000                            z
   2   A( 5, 0)      -3.0e-2                                z
 101   A( 3, 1)      -0.06000000                            x
 201   B( 3, 1)      -0.064                                 y
"""


def test_a_siemens_file_gives_its_coil():
    coil = parse_coefficients(HEAD + TERMS)
    assert (coil.radius, coil.order) == (250, 5)
    assert coil.cosine[2, 3, 0] == -0.08
    assert coil.cosine[2, 5, 0] == -0.03
    assert coil.cosine[0, 3, 1] == -0.06
    assert coil.sine[1, 3, 1] == -0.064
    assert np.count_nonzero(coil.cosine) + np.count_nonzero(coil.sine) == 4


@pytest.mark.parametrize(
    "text, message",
    [
        (HEAD, "no term"),
        ("", "no reference radius"),
        (TERMS, "no reference radius"),
        (HEAD.replace("0.250", "250.0"), "line 6: the reference radius is 250 m"),
        (HEAD.replace("0.250", "0,250"), "line 6: the reference radius is '0,250', expected a number"),
        (HEAD + TERMS.replace("-0.064 ", "-0,064 "), r"line 15: B\(3, 1\) is '-0,064', expected a number"),
        (HEAD + TERMS.replace("-0.064 ", "nan    "), r"line 15: B\(3, 1\) is 'nan'"),
        (HEAD + TERMS.replace("B( 3, 1)", "B( 3, 4)"), r"line 15: found the order \(3, 4\)"),
        (HEAD + TERMS.replace("B( 3, 1)", "B(31, 1)"), r"line 15: found the order \(31, 1\)"),
        (HEAD + TERMS.replace("B( 3, 1)", "C( 3, 1)"), "line 15: found '201"),
        (HEAD + TERMS.replace(" y\n", " w\n"), "line 15: found '201"),
        (HEAD + TERMS + TERMS, r"line 16: A\(3, 0\) of coil z is given a second time"),
        (HEAD + TERMS + "and so on\n", "line 16: found 'and so on', expected a term"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(text, message):
    with pytest.raises(ValueError, match=message):
        parse_coefficients(text)
