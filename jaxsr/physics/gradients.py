"""Gradient nonlinearity: where the fields of the gradient coils bend, images are displaced.

Each coil's field, over its nominal gradient, is a sum of solid harmonics [Janke, Magn. Reson. Med. 52:115, 2004] in Siemens' convention

    B_i(r, θ, φ) = Σ_nm (r/r₀)^n N_nm P_nm(cos θ) [A_nm cos mφ + B_nm sin mφ],      i = x, y, z
    N_n0 = 1,  N_nm = (−1)^m √((2n + 1)(n − m)! / (2(n + m)!))       P_nm with the Condon–Shortley phase, which (−1)^m takes back

and the point at r appears at r + u(r), u_i = r₀ B_i (without orders 0 and 1, a shift and the ideal gradient). Signal is conserved:

    distorted(r + u(r)) J(r) = true(r),      J = det(1 + ∇u).

So `unwarp` reads distorted at r + u(r), and `warp` is `unwarp` by the inverse field v, v(s) = −u(s + v(s)).

Volumes are read by the interpolating cubic B-spline of jaxsr.volume (order 3, mirrored; beyond the outermost centres the edge value goes
on): linear interpolation would blur what super-resolution is about. Fields are smooth, and read linearly where they are inverted.

Axes. Coefficients are in the coils' own axes: x to the left, y to the front, z to the feet of a head-first supine patient, as gradunwarp
and FreeSurfer read them; that is RAS turned by 180° about y (`turn_axes`), and zero is the isocentre.
"""

import functools
import re
from math import factorial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

HIGHEST_ORDER = 30  # of a coefficient file; known ones end below 20, and factorials must stay finite
RADII = (0.02, 2.0)  # m

VoxelSize = float | tuple[float, float, float]


class Coil(NamedTuple):
    """Coefficients of the three gradient coils.

    cosine: A_nm of the coils x, y and z, `[3, N + 1, N + 1]`, unitless.
    sine: B_nm, likewise.
    radius: r₀, mm.
    """

    cosine: np.ndarray | Array
    sine: np.ndarray | Array
    radius: float

    @property
    def order(self) -> int:
        """N, the highest order n."""
        return int(self.cosine.shape[1]) - 1


def _example_coil() -> Coil:
    cosine, sine = np.zeros((2, 3, 6, 6))
    cosine[0, [3, 3, 5, 5, 5], [1, 3, 1, 3, 5]] = (-0.060, 0.006, -0.024, 0.004, -0.002)
    sine[1, [3, 3, 5, 5, 5], [1, 3, 1, 3, 5]] = (-0.064, -0.005, -0.026, -0.004, -0.002)
    cosine[2, [3, 5], [0, 0]] = (-0.080, -0.030)
    return Coil(cosine, sine, 250.0)


EXAMPLE_COIL = _example_coil()  # made up; a whole-body coil's symmetries and size: about 1 mm at 100 mm from the isocentre, 4 mm at 150 mm


@jax.jit
def displacement(coil: Coil, points_mm: Array) -> Array:
    """u at `points_mm [..., 3]`, float32 `[..., 3]` in mm: both in the coils' axes, from the isocentre (see `turn_axes`)."""
    x, y, z = jnp.moveaxis(jnp.asarray(points_mm, jnp.float32) / coil.radius, -1, 0)
    square = x**2 + y**2 + z**2
    total = [jnp.zeros_like(x)] * 3
    real, imaginary = jnp.ones_like(x), jnp.zeros_like(x)  # (x + iy)^m = r^m sin^m θ (cos mφ + i sin mφ)
    for m in range(coil.order + 1):
        before, now = jnp.zeros_like(x), jnp.full_like(x, _double_factorial(2 * m - 1))  # r^(n − m) P_nm / sin^m θ, n = m − 1 and m
        for n in range(m, coil.order + 1):
            if n > 1:
                weight = _norm(n, m) * now
                total = [t + weight * (a[n, m] * real + b[n, m] * imaginary) for t, a, b in zip(total, coil.cosine, coil.sine, strict=True)]
            before, now = now, ((2 * n + 1) * z * now - (n + m) * square * before) / (n + 1 - m)
        real, imaginary = x * real - y * imaginary, x * imaginary + y * real
    return coil.radius * jnp.stack(total, -1)


def turn_axes(vectors: Array) -> Array:
    """Points or displacements `[..., 3]` from RAS to the coils' axes, or back: (x, y, z) → (−x, y, −z) is its own inverse."""
    return vectors * jnp.array([-1.0, 1.0, -1.0], vectors.dtype)


@functools.partial(jax.jit, static_argnums=1)
def random_displacement(key: Array, shape: tuple[int, int, int], voxel_size: VoxelSize, strength_mm: Array | float) -> Array:
    """A field `[X, Y, Z, 3]` in mm along the axes of a RAS+ volume, as of a coil like `EXAMPLE_COIL`; its longest vector is `strength_mm`.

    Every coefficient varies by half of itself; terms that an ideal coil lacks are small, not zero; the isocentre is about 10 mm (1 σ) off
    the centre of the volume.
    """
    keys = jax.random.split(key, 3)
    size = jnp.broadcast_to(jnp.asarray(voxel_size, jnp.float32), (3,))
    axes = [(jnp.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, size, strict=True)]
    points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1) - 10.0 * jax.random.normal(keys[0], (3,))
    ideal = jnp.asarray((EXAMPLE_COIL.cosine, EXAMPLE_COIL.sine), jnp.float32)  # [2, 3, N + 1, N + 1]
    relative, absolute = jax.random.normal(keys[1], (2, *ideal.shape))
    cosine, sine = ideal * (1 + 0.5 * relative) + 0.002 * absolute
    field = turn_axes(displacement(Coil(cosine, sine, EXAMPLE_COIL.radius), turn_axes(points)))
    longest = jnp.sqrt((field**2).sum(-1).max())
    return field * (strength_mm / longest)


# -------------------------------------------------------------------------------------------------------------------- warping


@functools.partial(jax.jit, static_argnames="jacobian")
def warp(volume: Array, displacement_mm: Array, voxel_size: VoxelSize, *, jacobian: bool = True) -> Array:
    """`volume [X, Y, Z]` as a scanner with this field would show it: the point at r appears at r + u(r). Linear in the volume.

    Args:
      displacement_mm: u `[X, Y, Z, 3]`, mm along the volume's axes, at the true positions.
      voxel_size: mm.
      jacobian: signal per true volume is kept; without, intensities are moved and not changed.
    """
    return unwarp(volume, invert(displacement_mm, voxel_size), voxel_size, jacobian=jacobian)


@functools.partial(jax.jit, static_argnames="jacobian")
def unwarp(volume: Array, displacement_mm: Array, voxel_size: VoxelSize, *, jacobian: bool = True) -> Array:
    """The inverse of `warp`: corrected(r) = distorted(r + u(r)) J(r), for the same u, at the corrected positions."""
    corrected = _read_cubic(volume, _positions(displacement_mm, voxel_size))
    return corrected * jnp.exp(log_jacobian(displacement_mm, voxel_size)) if jacobian else corrected


@functools.partial(jax.jit, static_argnames="iterations")
def invert(displacement_mm: Array, voxel_size: VoxelSize, iterations: int = 10) -> Array:
    """v `[X, Y, Z, 3]` in mm with v(s) = −u(s + v(s)), by fixed-point iteration.

    The error shrinks by the largest |∇u| each time (0.3, where a field displaces by 10 mm what is at 100 mm); |∇u| ≥ 1 folds space, and
    has no inverse. What comes from outside the volume is taken to move like its edge.
    """

    def step(_: int, inverse: Array) -> Array:
        return -_read_linear(displacement_mm, _positions(inverse, voxel_size))

    return jax.lax.fori_loop(0, iterations, step, -displacement_mm)


@jax.jit
def log_jacobian(displacement_mm: Array, voxel_size: VoxelSize) -> Array:
    """log J `[X, Y, Z]` of u `[X, Y, Z, 3]`: positive where space is stretched and signal thinned. Differences of second order.

    Where space folds (J ≤ 0) the logarithm is that of 1 %.
    """
    size = jnp.broadcast_to(jnp.asarray(voxel_size, displacement_mm.dtype), (3,))
    columns = [_difference(displacement_mm, axis) / size[axis] for axis in range(3)]  # ∂u/∂r_axis
    a, b, c = (column + jnp.eye(3, dtype=column.dtype)[axis] for axis, column in enumerate(columns))
    return jnp.log(jnp.maximum((a * jnp.cross(b, c)).sum(-1), 0.01))


def _positions(displacement_mm: Array, voxel_size: VoxelSize) -> Array:
    """Where r + u(r) lies, in voxels, `[X, Y, Z, 3]`; points outside are brought to the edge."""
    shape = displacement_mm.shape[:3]
    size = jnp.broadcast_to(jnp.asarray(voxel_size, displacement_mm.dtype), (3,))
    index = jnp.stack(jnp.meshgrid(*(jnp.arange(n, dtype=displacement_mm.dtype) for n in shape), indexing="ij"), -1)
    return jnp.clip(index + displacement_mm / size, 0, jnp.array(shape) - 1)


def _difference(field: Array, axis: int) -> Array:
    """Central differences per voxel along one axis, one-sided parabolas at its ends; zero along an axis of fewer than three voxels."""
    n = field.shape[axis]
    if n < 3:
        return jnp.zeros_like(field)
    at = lambda i: jax.lax.index_in_dim(field, i % n, axis)  # noqa: E731
    between = lambda first, last: jax.lax.slice_in_dim(field, first, n + last, axis=axis)  # noqa: E731
    first = (4 * at(1) - 3 * at(0) - at(2)) / 2
    last = (3 * at(-1) - 4 * at(-2) + at(-3)) / 2
    return jnp.concatenate([first, (between(2, 0) - between(0, -2)) / 2, last], axis)


def _read_linear(field: Array, positions: Array) -> Array:
    """`field [X, Y, Z, C]` at `positions [..., 3]` inside it."""
    return _read(field, positions, 0, (lambda t: 1 - t, lambda t: t))


def _read_cubic(volume: Array, positions: Array) -> Array:
    """`volume [X, Y, Z]` at `positions [..., 3]` inside it: Σ c_j β³(p − j), which passes through the voxels."""
    for axis, n in enumerate(volume.shape):
        volume = jnp.moveaxis(jnp.tensordot(_spline_coefficients(n), volume, (1, axis)), 0, axis)
    kernel = (
        lambda t: (1 - t) ** 3 / 6,
        lambda t: 2 / 3 - t**2 + t**3 / 2,
        lambda t: 2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2,
        lambda t: t**3 / 6,
    )
    return _read(volume[..., None], positions, -1, kernel)[..., 0]


def _read(field: Array, positions: Array, first: int, kernel: tuple) -> Array:
    """Σ over the taps of a separable kernel, from voxel ⌊p⌋ + first on; the field is mirrored at its outermost centres.

    A plane at a time: indices and weights of a whole volume would be twenty volumes.
    """
    taps = len(kernel)
    for axis, n in enumerate(field.shape[:3]):
        index = np.arange(first, first + n - 1 + taps)
        field = jnp.take(field, abs((index + n - 1) % max(1, 2 * n - 2) - (n - 1)), axis)
    steps = (field.shape[1] * field.shape[2], field.shape[2], 1)
    flat = field.reshape(-1, field.shape[3])

    def plane(at: Array) -> Array:
        below = jnp.floor(at)
        weights = [[tap(t) for tap in kernel] for t in jnp.moveaxis(at - below, -1, 0)]
        corner = (below.astype(jnp.int32) * jnp.array(steps)).sum(-1)
        total = jnp.zeros((*at.shape[:-1], field.shape[3]), field.dtype)
        for i, j, k in np.ndindex(taps, taps, taps):
            weight = weights[0][i] * weights[1][j] * weights[2][k]
            total += weight[..., None] * flat[corner + (i * steps[0] + j * steps[1] + k)]
        return total

    return jax.lax.map(plane, positions)


@functools.cache
def _spline_coefficients(n: int) -> np.ndarray:
    """Values → B-spline coefficients along an axis of n voxels, mirrored at the outermost centres: float32 `[n, n]`."""
    values = (4 * np.eye(n) + np.eye(n, k=1) + np.eye(n, k=-1)) / 6
    if n == 1:
        return np.ones((1, 1), np.float32)
    values[0, 1] = values[-1, -2] = 1 / 3
    return np.linalg.inv(values).astype(np.float32)


def _norm(n: int, m: int) -> float:
    return 1.0 if m == 0 else ((2 * n + 1) * factorial(n - m) / (2 * factorial(n + m))) ** 0.5


def _double_factorial(n: int) -> int:
    return int(np.prod(range(n, 0, -2), dtype=object)) if n > 0 else 1


# -------------------------------------------------------------------------------------------------------------------- files

_RADIUS = re.compile(r"(\S+)\s*m\s*=\s*R0\b", re.IGNORECASE)
_TERM = re.compile(r"\d+\s+([AB])\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)\s+(\S+)\s+([xyz])", re.IGNORECASE)
_TERM_STARTS = re.compile(r"\d+\s+[A-Z]\s*\(", re.IGNORECASE)


def parse_coefficients(text: str) -> Coil:
    """The coil of a Siemens coefficient file (`coeff_*.grad`).

    Lines of `#` or `*` are comments; a head of free text holds r₀, as in `0.250 m = R0, …`; the rest are terms, as in
    `1 A( 3, 0) -0.0958 z`: number, cosine (A) or sine (B), n, m, value and coil.

    Raises:
      ValueError: says the line, what was found and what was expected.
    """
    radius: float | None = None
    terms: dict[tuple[str, int, int, str], float] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line[0] in "#*":
            continue
        if not terms and not _TERM_STARTS.match(line):
            if found := _RADIUS.search(line):
                radius = _number(found[1], number, "the reference radius")
                if not RADII[0] <= radius <= RADII[1]:
                    raise ValueError(f"line {number}: the reference radius is {radius:g} m, expected {RADII[0]:g} to {RADII[1]:g} m")
            continue
        term = _TERM.fullmatch(line)
        if term is None:
            raise ValueError(f"line {number}: found {line[:60]!r}, expected a term as in '1 A( 3, 0) -0.0958 z'")
        kind, n, m, coil = term[1].upper(), int(term[2]), int(term[3]), term[5].lower()
        if not m <= n <= HIGHEST_ORDER:
            raise ValueError(f"line {number}: found the order ({n}, {m}), expected (n, m) with m ≤ n ≤ {HIGHEST_ORDER}")
        if (kind, n, m, coil) in terms:
            raise ValueError(f"line {number}: {kind}({n}, {m}) of coil {coil} is given a second time, expected once")
        terms[kind, n, m, coil] = _number(term[4], number, f"{kind}({n}, {m})")
    if radius is None:
        raise ValueError("found no reference radius, expected a line as in '0.250 m = R0' before the terms")
    if not terms:
        raise ValueError("found no term, expected lines as in '1 A( 3, 0) -0.0958 z'")
    order = max(n for _, n, _, _ in terms)
    table = np.zeros((2, 3, order + 1, order + 1))
    for (kind, n, m, coil), value in terms.items():
        table["AB".index(kind), "xyz".index(coil), n, m] = value
    return Coil(table[0], table[1], 1000 * radius)


def _number(text: str, line: int, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"line {line}: {what} is {text[:30]!r}, expected a number")
    return value
