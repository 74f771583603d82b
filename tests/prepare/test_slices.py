"""Which slices of a scan become records."""

import numpy as np

from jaxsr.data.pairs import Pair
from jaxsr.data.records import decode
from jaxsr.prepare.scan import Prepared, shared_box
from jaxsr.prepare.slices import kept_slices, records
from jaxsr.volume.geometry import Grid
from jaxsr.volume.intensity import Window


def box(covered_to: int = 12) -> Prepared:
    """A bright box at x 4…11, y 2…9, z 3…12 in 16³ voxels; the volumes saw x < `covered_to`."""
    high = np.full((16, 16, 16), -1.6, np.float32)
    high[4:12, 2:10, 3:13] = 0.5
    covered = np.zeros(high.shape, bool)
    covered[:covered_to] = True
    gradient = np.stack(np.meshgrid(*[np.arange(16.0)] * 3, indexing="ij"), -1).astype(np.float32)
    pair = Pair(high, high, Grid((16, 16, 16), np.eye(4)), gradient=gradient)
    return Prepared(pair, covered, Window(0, 1), (2.0, 2.0, 2.0), ())


def test_slices_without_a_head_are_dropped():
    assert kept_slices(box(16), 0.05) == (list(range(4, 12)), list(range(2, 10)), list(range(3, 13)))


def test_a_slice_needs_its_share_of_tissue():
    assert kept_slices(box(16), 64 / 256 + 0.01) == (list(range(4, 12)), list(range(2, 10)), [])


def test_slices_that_a_volume_did_not_see_are_dropped():
    assert kept_slices(box(8), 0.01) == ([4, 5, 6, 7], [], [])  # across y and z half of every slice's tissue is missing


def test_displacements_are_along_the_rows_the_columns_and_through_the_slice():
    prepared = box(16)
    found = [decode(record) for record in records(prepared, ("high", "gradient"), ([5], [6], [7]), "float32")]
    for record, (axis, index) in zip(found, ((0, 5), (1, 6), (2, 7)), strict=True):
        rows, columns, through = np.moveaxis(record["gradient"], -1, 0)
        np.testing.assert_array_equal(rows, np.arange(16.0)[:, None] * np.ones(16))
        np.testing.assert_array_equal(columns, np.arange(16.0) * np.ones((16, 1)))
        assert (through == index).all(), axis


def test_a_neck_that_one_volume_did_not_see_is_cut_off():
    tissue = np.zeros((16, 16, 16), bool)
    tissue[4:12, 4:12, 2:14] = True
    covered = np.ones_like(tissue)
    covered[:, :, :6] = False
    assert shared_box(tissue, covered) == (slice(0, 16), slice(0, 16), slice(6, 16))
    assert shared_box(tissue, np.ones_like(tissue)) == (slice(0, 16),) * 3


def test_slices_are_cut_across_the_axes_that_were_asked_for():
    assert kept_slices(box(16), 0.05, ("axial",)) == ([], [], list(range(3, 13)))
