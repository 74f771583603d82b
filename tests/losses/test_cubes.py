"""Laws of batches of whole cubes: means over as many axes as serve, and slices beside each other."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.data.pairs import beside, steps_beside
from jaxsr.losses.cubes import over_axes, slabs

SIDE = 4


def views(count=3, seed=0):
    """Of each cube and axis values of their own for all voxels, `[K, 3, N, N, N]` in the order of the voxels; and the slices of those."""
    values = np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE, SIDE)).astype(np.float32)
    slices = np.concatenate([np.moveaxis(cube[axis], axis, 0) for cube in values for axis in range(3)])[..., None]
    return values, jnp.asarray(slices)


@pytest.mark.parametrize("count, axes", [(3, [[0, 1, 2]] * 3), (2, [[0, 1], [0, 1], [2]]), (1, [[0], [1], [2]])])
def test_the_mean_is_over_as_many_axes_as_are_said(count, axes):
    values, slices = views()
    found = np.asarray(over_axes(slices, jnp.full(slices.shape[0], count, jnp.float32))).reshape(3, 3, SIDE, SIDE, SIDE)
    for axis, others in enumerate(axes):
        expected = np.moveaxis(values[:, others].mean(1), 1 + axis, 1)
        np.testing.assert_allclose(found[:, axis], expected, atol=1e-6)


def test_each_cube_has_a_number_of_its_own_and_three_are_meant_where_none_is_said():
    _, slices = views()
    of_each = [over_axes(slices, jnp.full(slices.shape[0], n, jnp.float32)) for n in (1, 2, 3)]
    np.testing.assert_array_equal(over_axes(slices), of_each[2])
    together = over_axes(slices, jnp.repeat(jnp.array([1.0, 2.0, 3.0]), 3 * SIDE))
    for cube, alone in enumerate(of_each):
        rows = slice(cube * 3 * SIDE, (cube + 1) * 3 * SIDE)
        np.testing.assert_array_equal(together[rows], alone[rows])


@pytest.mark.parametrize("context", [0, 1, 3])
def test_slabs_are_a_slice_and_those_beside_it_as_a_condition_has_them(context):
    values, slices = views()
    found = np.asarray(slabs(slices, steps_beside(context))).reshape(3, 3, SIDE, SIDE, SIDE, 1 + 2 * context)
    for cube in range(3):
        for axis in range(3):
            for index in range(SIDE):
                middle, around = found[cube, axis, index, ..., 0], found[cube, axis, index, ..., 1:]
                np.testing.assert_array_equal(middle, np.moveaxis(values[cube, axis], axis, 0)[index])
                if context:
                    np.testing.assert_array_equal(around, beside(values[cube, axis], axis, index, context))


@pytest.mark.parametrize("shape", [(3 * SIDE - 1, SIDE, SIDE, 1), (3 * SIDE, SIDE, SIDE + 1, 1)])
def test_what_are_no_whole_cubes_is_refused(shape):
    for of in (over_axes, lambda x: slabs(x, [-1, 1])):
        with pytest.raises(ValueError, match="are no whole cubes of 12 slices"):
            of(jnp.zeros(shape))
