"""Laws of the gradient-nonlinearity map: one field, whoever wrote it and whichever way the grid lies."""

import jax
import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jaxsr.data.gradients import gradient_map, jacobian_map
from jaxsr.physics.gradients import EXAMPLE_COIL, displacement, parse_coefficients, turn_axes
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.geometry import Grid

SHAPE = (9, 11, 10)
TERMS = "0.250 m = R0\n1 A( 3, 0) -0.080 z\n2 A( 5, 0) -0.030 z\n3 A( 3, 1) -0.060 x\n4 B( 2, 2) 0.050 y\n"


def grid_of(degrees=(0, 0, 0), sizes=(16.0, 18.0, 20.0), flip=(1, 1, 1), centre=(4.0, -7.0, 11.0), shape=SHAPE):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * sizes * flip
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def points_of(grid):
    return np.moveaxis(np.indices(grid.shape), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def in_scanner(grid, vectors):
    """Components along a grid's axes → along R, A, S."""
    return vectors @ (grid.affine[:3, :3] / grid.voxel_size).T


def smooth(points):
    """A field in scanner mm, RAS, `[..., 3]`, to 0.01 mm linear between voxels of 20 mm."""
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack([3 + z / 40, 2 * np.cos(x / 90) - 1, x / 60 - y / 80 + 1], -1).astype(np.float32)


@pytest.fixture
def coefficients(tmp_path):
    path = tmp_path / "coeff.grad"
    path.write_text(TERMS)
    return path


@pytest.mark.parametrize("grid", [grid_of(), grid_of((20, -30, 40)), grid_of(flip=(-1, 1, -1))], ids=["straight", "oblique", "flipped"])
def test_a_coil_displaces_along_the_scanner_whichever_way_the_grid_lies(grid, coefficients):
    """Coil axes are x left, y front, z to the feet: closed forms of A(3,0), A(5,0), A(3,1) and B(2,2) there, turned to RAS by hand."""
    x, y, z = np.moveaxis(points_of(grid) * (-1, 1, -1) / 250, -1, 0)
    r2, rho2 = x**2 + y**2 + z**2, x**2 + y**2
    left = -0.060 * np.sqrt(7 / 24) * 1.5 * x * (4 * z**2 - rho2)
    front = 0.050 * np.sqrt(5 / 48) * 6 * x * y
    feet = -0.080 * (z**3 - 1.5 * z * rho2) - 0.030 * (63 * z**5 - 70 * z**3 * r2 + 15 * z * r2**2) / 8
    expected = 250 * np.stack([-left, front, -feet], -1)
    np.testing.assert_allclose(in_scanner(grid, gradient_map(grid, coefficients)), expected, atol=1e-4)


def test_moving_isocentre_and_volume_together_changes_nothing(coefficients):
    moved = gradient_map(grid_of(centre=(14, 13, -19)), coefficients, isocentre=(10, 20, -30))
    np.testing.assert_allclose(moved, gradient_map(grid_of(), coefficients), atol=1e-4)
    assert np.abs(moved - gradient_map(grid_of(centre=(14, 13, -19)), coefficients)).max() > 0.1


def write(path, grid, convention, field=smooth, extra_axis=False):
    """A field, `smooth` or another, in a file of the given grid and convention, written by what each convention says."""
    points = points_of(grid)
    vectors = field(points)
    if convention == "lps":
        vectors = vectors * (-1, -1, 1)
    if convention.startswith("fsl"):
        # FSL's millimetres: voxel index times voxel size, x counted from the other end where the axes are right-handed.
        index = np.moveaxis(np.indices(grid.shape), 0, -1).astype(float)
        end = grid.shape[0] - 1

        def millimetres(voxels):
            found = voxels * grid.voxel_size
            if np.linalg.det(grid.affine[:3, :3]) > 0:
                found[..., 0] = end * grid.voxel_size[0] - found[..., 0]
            return found

        there = points + vectors
        reached = (there - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T
        vectors = millimetres(reached) - (millimetres(index) if convention == "fsl" else 0)
    data = vectors[:, :, :, None] if extra_axis else vectors
    nib.save(nib.Nifti1Image(data.astype(np.float32), grid.affine), path)
    return path


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1)], ids=["right-handed", "left-handed"])
@pytest.mark.parametrize("convention", ["ras", "lps", "fsl", "fsl-absolute"])
def test_all_conventions_tell_of_the_same_field(tmp_path, convention, flip):
    path = write(tmp_path / "u.nii.gz", grid_of((5, 8, -12), flip=flip, shape=(13, 15, 14)), convention, extra_axis=convention == "lps")
    grid = grid_of((-4, 3, 7), (13.0, 15.0, 17.0))
    found = in_scanner(grid, gradient_map(grid, path, convention=convention))
    np.testing.assert_allclose(found, smooth(points_of(grid)), atol=0.02)


def test_a_coil_written_as_a_volume_is_the_coil(tmp_path, coefficients):
    """The displacement volume, in RAS, and the coefficients give one map."""
    fine = grid_of(sizes=(8.0, 8.0, 8.0), shape=(21, 27, 27))
    path = tmp_path / "u.nii"
    nib.save(nib.Nifti1Image(in_scanner(fine, gradient_map(fine, coefficients)).astype(np.float32), fine.affine), path)
    grid = grid_of((3, -5, 9))
    inside = (slice(1, -1),) * 3
    np.testing.assert_allclose(gradient_map(grid, path)[inside], gradient_map(grid, coefficients)[inside], atol=0.01)


def test_the_map_points_to_where_the_scanner_imaged_the_point(coefficients):
    """`unwarp` by the map is the correction; the sign is that of u: at 100 mm above the isocentre A(3,0) < 0 draws towards it."""
    grid = grid_of(shape=(5, 5, 5), sizes=(50.0, 50.0, 50.0), centre=(0, 0, 0))
    u = gradient_map(grid, coefficients)
    assert u[2, 2, 4, 2] < -1
    assert u[2, 2, 0, 2] > 1
    assert displacement(EXAMPLE_COIL, np.array([0.0, 0.0, 100.0]))[2] < -1


# -------------------------------------------------------------------------------------------------------------- its Jacobian

LINEAR = np.array([[0.03, -0.02, 0.01], [0.04, -0.05, 0.02], [-0.01, 0.03, 0.06]])  # ∂u_i/∂r_j in the scanner, no symmetry in it


@pytest.mark.parametrize("convention", ["ras", "lps", "fsl", "fsl-absolute"])
@pytest.mark.parametrize("grid", [grid_of(), grid_of((20, -30, 40)), grid_of(flip=(-1, 1, -1))], ids=["straight", "oblique", "flipped"])
def test_the_jacobian_of_a_linear_displacement_is_that_of_its_matrix_whichever_way_grid_and_file_lie(tmp_path, grid, convention):
    """u = A r: log det(1 + A) everywhere [Janke 2004: the determinant of the derivative], and a rotation of the axes has determinant 1."""
    path = write(tmp_path / "u.nii", grid_of((5, 8, -12), (16.0, 16.0, 16.0), shape=(19, 19, 19)), convention, lambda r: r @ LINEAR.T)
    found = jacobian_map(grid, gradient_map(grid, path, convention=convention))
    assert (found.shape, found.dtype) == (SHAPE, np.float32)
    np.testing.assert_allclose(found, np.log(np.linalg.det(np.eye(3) + LINEAR)), atol=2e-5)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_the_jacobian_is_one_volume_in_whatever_order_and_sense_the_axes_are_stored(order, coefficients):
    """So a slice of it needs no frame, as a displacement's slice does (`jaxsr.data.pairs.cut`)."""
    grid = grid_of((3, -5, 9))
    affine = grid.affine[:, [*order, 3]]
    turned = Grid(tuple(SHAPE[a] for a in order), affine)
    ends = np.eye(4)
    ends[:3, :3], ends[0, 3] = np.diag([-1, 1, 1]), turned.shape[0] - 1
    turned = Grid(turned.shape, affine @ ends)
    one, other = (jacobian_map(g, gradient_map(g, coefficients)) for g in (grid, turned))
    np.testing.assert_allclose(other, one.transpose(order)[::-1], atol=1e-5)
    assert np.ptp(one) > 0.01


def test_the_jacobian_of_a_coil_needs_the_way_through_the_slices(coefficients):
    """That of A(3,0), A(5,0), A(3,1), B(2,2), by autodiff; the part within axial slices alone is another."""
    grid = grid_of(sizes=(8.0, 8.0, 8.0))
    u = gradient_map(grid, coefficients)
    in_coil = turn_axes(points_of(grid).reshape(-1, 3).astype(np.float32))
    derivative = jax.vmap(jax.jacfwd(lambda r: displacement(parse_coefficients(TERMS), r)))(in_coil)
    expected = np.linalg.slogdet(np.eye(3) + derivative)[1].reshape(SHAPE)
    found = jacobian_map(grid, u)
    inside = (slice(1, -1),) * 3
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.02 * np.abs(expected).max())
    rows, columns = (np.stack(np.gradient(u[..., c], 8.0, axis=(0, 1)), -1) for c in (0, 1))
    within = np.log((1 + rows[..., 0]) * (1 + columns[..., 1]) - rows[..., 1] * columns[..., 0])
    assert np.abs(within - expected)[inside].max() > 0.2 * np.abs(expected).max()


def bad(tmp_path, name, content=None, shape=None, value=0.0, sizes=(16.0, 18.0, 20.0)):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    if shape is not None:
        nib.save(nib.Nifti1Image(np.full(shape, value, np.float32), grid_of(sizes=sizes).affine), path)
    return path


@pytest.mark.parametrize(
    "given, message",
    [
        ({"name": "c.grad"}, "cannot be opened"),
        ({"name": "c.grad", "content": b"0.250 m = R0\n1 A( 3, 4) 1 z\n"}, r"c.grad: line 2: found the order \(3, 4\)"),
        ({"name": "c.grad", "content": b"\x1f\x8b\0\0"}, "neither a volume by its suffix"),
        ({"name": "u.nii"}, "no such file"),
        ({"name": "u.nii", "shape": SHAPE}, "has the shape 9 × 11 × 10, expected X × Y × Z × 3"),
        ({"name": "u.nii", "shape": (*SHAPE, 2)}, "has the shape 9 × 11 × 10 × 2"),
        ({"name": "u.nii", "shape": (*SHAPE, 3), "value": np.nan}, "2970 components are NaN"),
        ({"name": "u.nii", "shape": (*SHAPE, 3), "value": 90.0}, "displaces by 156 mm, expected 50 mm at most"),
        ({"name": "u.nii", "shape": (*SHAPE, 3), "sizes": (8.0, 8.0, 8.0)}, "covers .* of the volume, expected at least 90%"),
    ],
)
def test_what_is_no_displacement_is_refused_with_its_name(tmp_path, given, message):
    path = bad(tmp_path, **given)
    with pytest.raises(VolumeError, match=message) as raised:
        gradient_map(grid_of(), path)
    assert str(raised.value).startswith(str(path))
