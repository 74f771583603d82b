"""The foreground is the head: tissue and what it encloses, whatever the unit of intensity."""

import numpy as np
import pytest

from jaxsr.volume.foreground import foreground


def phantom(air=0.02, shape=(40, 48, 36)):
    """A bright ball with a dark cavity, in Rician-like noise of level `air`; and where the ball is."""
    rng = np.random.default_rng(0)
    radius = np.sqrt(sum(np.linspace(-1.3, 1.3, n).reshape([-1 if a == i else 1 for i in range(3)]) ** 2 for a, n in enumerate(shape)))
    head = radius < 1
    data = 1.0 * head * (radius > 0.3)
    return np.hypot(data + air * rng.standard_normal(shape), air * rng.standard_normal(shape)).astype(np.float32), head


def overlap(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("scale, offset", [(1, 0), (1e-6, 0), (4000, -1000)])
def test_the_head_is_found_cavity_included(scale, offset):
    data, head = phantom()
    assert overlap(foreground(scale * data + offset), head) > 0.9  # the smoothing reaches a voxel beyond


def test_a_cut_out_brain_after_a_z_score_is_the_brain():
    _, head = phantom()
    data = np.where(head, np.random.default_rng(1).standard_normal(head.shape), 0).astype(np.float32)
    np.testing.assert_array_equal(foreground(data), head)


def test_speckles_far_from_the_head_do_not_belong_to_it():
    data, _ = phantom()
    data[1:4, 1:4, 1:4] = 5
    assert not foreground(data)[:5, :5, :5].any()


def test_a_constant_volume_is_all_foreground():
    assert foreground(np.full((12, 12, 12), 3, np.float32)).all()
