"""Pictures show what their labels say. Planes and views are tested; pixels are looked at."""

import matplotlib.image
import numpy as np
import pytest

from jaxsr.evaluate.montage import EDGES, ZOOM_MM, _views, bounding_box, head_centre, picture, save_montage

DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def ramp(letter, shape=(14, 18, 16)):
    """Brighter towards `letter`."""
    axis, sign = DIRECTIONS[letter]
    return np.broadcast_to((sign * np.arange(shape[axis])).reshape([-1 if a == axis else 1 for a in range(3)]), shape)


@pytest.mark.parametrize("plane", EDGES)
def test_every_side_of_a_picture_points_where_its_label_says(plane):
    left, right, top, bottom = (picture(ramp(letter), plane, 5) for letter in EDGES[plane])
    assert (np.diff(left, axis=1) < 0).all()
    assert (np.diff(right, axis=1) > 0).all()
    assert (np.diff(top, axis=0) < 0).all()
    assert (np.diff(bottom, axis=0) > 0).all()


def test_the_patients_right_is_on_the_left_of_the_axial_picture_and_the_face_on_the_left_of_the_sagittal_one():
    volume = np.zeros((14, 18, 16))
    volume[-1, :, :] = 1  # rightmost
    volume[:, -1, :] += 2  # foremost
    assert (picture(volume, "axial", 8)[1:, 0] == 1).all()
    assert (picture(volume, "sagittal", 5)[:, 0] == 2).all()


def block(shape=(40, 50, 30)):
    foreground = np.zeros(shape, bool)
    foreground[10:30, 5:45, 4:24] = True
    return foreground


def test_planes_go_through_the_centre_of_the_head():
    np.testing.assert_allclose(head_centre(block(), (1, 1, 1)), [19.5, 24.5, 13.5], atol=0.5)


def test_a_neck_does_not_pull_the_planes_down():
    body = np.zeros((20, 20, 100), bool)
    body[5:15, 5:15, :] = True
    assert head_centre(body, (1, 1, 3))[2] == pytest.approx(100 - 25, abs=1)


def test_the_head_is_cropped_with_a_margin_in_mm():
    assert bounding_box(block(), (1, 2, 4)) == ((6, 3, 3), (34, 47, 25))


@pytest.mark.parametrize("voxel_size", [(1, 1, 1), (0.5, 0.5, 3), (2, 1, 1)])
def test_millimetres_are_square_whatever_the_voxels(voxel_size):
    for view in _views(block(), voxel_size):
        rows, columns = view.of(block()).shape
        assert view.extent == (rows * view.voxel_size[0], columns * view.voxel_size[1])


def test_the_zoom_on_the_cortex_is_square_left_and_posterior():
    foreground = np.zeros((160, 200, 120), bool)
    foreground[10:150, 10:190, 10:110] = True
    zoom = _views(foreground, (1, 1, 1))[-2]
    assert zoom.extent == (ZOOM_MM, ZOOM_MM)
    assert (np.add(zoom.box.start, zoom.box.stop)[:2] / 2 < [80, 100]).all()
    assert foreground[tuple(slice(a, b) for a, b in zip(*zoom.box, strict=True))].all()


@pytest.mark.parametrize("reference", [True, False])
def test_the_montage_is_a_png_of_legible_size(tmp_path, reference):
    target = np.random.default_rng(0).random((40, 50, 30)).astype(np.float32) * block() * 900
    path = save_montage(
        tmp_path / "new" / "m.png",
        {"trilinear": 0.9 * target, "sr3": target},
        target if reference else None,
        voxel_size=(1, 1, 2),
        captions={"sr3": "31.20 dB"},
        title="sub-01",
    )
    height, width, _ = matplotlib.image.imread(path).shape
    assert width > 500
    assert height > 800
    assert [p.name for p in path.parent.iterdir()] == ["m.png"]


def test_volumes_on_different_grids_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(4, 5, 6\)"):
        save_montage(tmp_path / "m.png", {"a": np.zeros((4, 5, 6))}, np.zeros((4, 5, 7)))


def test_the_zoom_on_the_cerebellum_is_sagittal_behind_and_below_the_centre():
    foreground = np.zeros((160, 220, 190), bool)
    foreground[10:150, 15:205, 10:180] = True
    zoom, centre = _views(foreground, (1, 1, 1))[-1], head_centre(foreground, (1, 1, 1))
    assert (zoom.plane, zoom.at) == ("sagittal", centre[0])
    assert zoom.extent == (ZOOM_MM, ZOOM_MM)
    assert (np.add(zoom.box.start, zoom.box.stop)[1:] / 2 < centre[1:] - 20).all()
    assert foreground[tuple(slice(a, b) for a, b in zip(*zoom.box, strict=True))].all()


@pytest.mark.parametrize("shape", [(20, 30, 8), (5, 5, 5), (40, 200, 40)])
def test_zooms_stay_within_small_volumes(shape):
    for view in _views(np.ones(shape, bool), (1.0, 1.0, 3.0)):
        assert all(0 <= a < b <= n for a, b, n in zip(*view.box, shape, strict=True))
        assert view.of(np.zeros(shape)).size > 0
