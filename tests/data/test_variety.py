"""Laws of variety: one head, at each visit of another size and in another contrast."""

import jax
import numpy as np
import pytest

from jaxsr.config import ConfigError, from_dict
from jaxsr.data.acquired import simulate
from jaxsr.data.subjects import FolderSubjects, stable_hash
from jaxsr.data.variety import INVERTED, KNEE, SMOOTHED, ZOOMS, Variety, apply_curve, draw_curve, smooth, vary
from jaxsr.experiment import DataConfig
from jaxsr.physics.acquisition import Acquisition
from jaxsr.train.build import build_subjects
from jaxsr.upscale.export import _nameless
from jaxsr.volume.intensity import fit_window
from jaxsr.volume.io import Volume, read_volume, straighten, write_volume

SMOOTH = Acquisition(name="smooth", voxel_size=(4.0, 4.0, 4.0))


@pytest.fixture
def head():
    """Magnitudes with air of exactly 0 around them."""
    data = np.zeros((24, 20, 16), np.float32)
    data[4:-4, 4:-4, 2:-2] = np.random.default_rng(0).uniform(20, 300, (16, 12, 12))
    return Volume(data, np.array([[0, 1.2, 0, 5], [1, 0, 0, -7], [0, 0, 2, 9], [0, 0, 0, 1]], float))


def test_a_zoom_takes_voxels_for_larger_and_changes_none_of_them(head):
    zooms = set()
    for seed in range(60):
        varied = vary(head, Variety(zoom=(0.8, 1.2)), np.random.default_rng(seed))
        ratio = np.array(varied.grid.voxel_size) / head.grid.voxel_size
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
        np.testing.assert_array_equal(varied.data, head.data)
        zooms.add(round(float(ratio[0]), 6))
    assert zooms == {round(0.8 + 0.4 * i / (ZOOMS - 1), 6) for i in range(ZOOMS)}


def test_curves_rise_or_fall_over_tissue_and_lead_air_up_to_it():
    curves = np.stack([draw_curve(np.random.default_rng(seed)) for seed in range(400)])
    steps = np.diff(curves[:, 1:])
    falls = (steps < 0).all(1)
    assert (falls | (steps > 0).all(1)).all()
    assert abs(falls.mean() - INVERTED) < 0.1
    assert (curves[:, 0] == 0).all()
    np.testing.assert_allclose(curves.max(1), 1, rtol=1e-6)
    assert curves[:, 1:].min() > 0.03  # 0.25 of 4.25: the darkest tissue is brighter than air


def test_through_a_curve_values_go_as_its_knots_say_and_above_the_window_no_value_is_cut_off(head):
    data = head.data.copy()
    data[10, 10, 8:10] = 600
    high = float(fit_window(data).high)
    assert high < 400
    inside, knots = data <= high, [0.0, *np.linspace(KNEE, 1, 5)]
    rising, falling = np.array([0, 0.1, 0.2, 0.4, 0.8, 1.0]), np.array([0, 1.0, 0.8, 0.4, 0.2, 0.1])
    for curve in (rising, falling):
        np.testing.assert_allclose(apply_curve(data, curve)[inside], np.interp(data[inside] / high, knots, curve) * high, rtol=1e-5)
    assert apply_curve(data, rising).max() > 1.2 * high
    np.testing.assert_allclose(apply_curve(data, falling)[10, 10, 8:10], 0.1 * high, rtol=1e-5)


def test_so_many_visits_find_another_contrast(head):
    varied = [vary(head, Variety(contrasts=0.5), np.random.default_rng(seed)) for seed in range(200)]
    share = np.mean([not np.array_equal(of.data, head.data) for of in varied])
    assert abs(share - 0.5) < 0.11  # 3 σ


def test_every_second_visit_is_smoothed_by_a_gaussian_of_up_to_so_many_voxels():
    """Of a point the second moment along an axis is the Gaussian's variance; half of all visits leave it as it is."""
    point, ramp = np.zeros((15, 15, 15), np.float32), np.arange(15) - 7
    point[7, 7, 7] = 100
    moments = []
    for seed in range(200):
        data = vary(Volume(point, np.eye(4)), Variety(smooth=0.8), np.random.default_rng(seed)).data
        np.testing.assert_allclose(data.sum(), 100, rtol=1e-5)
        moments.append([(data.sum(tuple(a for a in range(3) if a != axis)) * ramp**2).sum() / 100 for axis in range(3)])
    moments = np.array(moments)
    np.testing.assert_allclose(moments[:, 0], moments[:, 2], atol=1e-5)
    assert abs((moments[:, 0] == 0).mean() - SMOOTHED) < 0.12  # and below a third of a voxel hardly any are
    assert 0.5 < moments.max() < 0.8**2 + 0.02


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_air_of_so_many_visits_is_cleared_in_scan_and_truth(tmp_path, share):
    at = np.stack(np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij"))
    head = np.where((at**2).sum(0) < 0.5, 400 + 100 * np.sin(5 * at[0]), 5)
    noise = np.random.default_rng(0).normal(0, 10, (2, 24, 24, 24))
    write_volume(tmp_path / "a.nii.gz", Volume(np.hypot(head + noise[0], noise[1]).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0])))
    how = {"voxel_size": 2.0, "acquisition": SMOOTH, "variety": Variety(cleared=share)}
    subjects = FolderSubjects([tmp_path / "a.nii.gz"], tmp_path, **how)
    pairs = [subjects.load(0, visit) for visit in range(20)]
    cleared = [np.ptp(pair.high[:3, :3]) == 0 and np.ptp(pair.low[:3, :3]) < 0.05 for pair in pairs]
    assert abs(np.mean(cleared) - share) < 0.3 * (0 < share < 1) + 1e-9
    assert all(np.ptp(pair.high[8:16, 8:16]) > 0.1 for pair in pairs)


def test_what_was_smooth_before_it_was_cut_out_is_as_bright_at_its_edge():
    mask = np.zeros((12, 12, 12), bool)
    mask[3:9, 3:9, 3:9] = True
    for sigma in (0.0, 0.4, 1.0):
        np.testing.assert_allclose(smooth(np.where(mask, np.float32(50), 0), sigma, mask), np.where(mask, 50, 0), rtol=1e-5)


def test_a_visit_is_what_it_is_whenever_it_comes_and_without_variety_nothing_changes(tmp_path, head):
    for name in "ab":
        write_volume(tmp_path / f"{name}.nii.gz", head)
    paths = sorted(tmp_path.glob("*.nii.gz"))

    def subjects(**how):
        return FolderSubjects(paths, tmp_path, voxel_size=1.0, native=True, acquisition=SMOOTH, **how)

    varied = subjects(variety=Variety((0.8, 1.2), 1.0))
    first, other, another = varied.load(0, 3), varied.load(1, 3), varied.load(0, 4)
    again = subjects(variety=Variety((0.8, 1.2), 1.0)).load(0, 3)
    np.testing.assert_array_equal(first.high, again.high)
    np.testing.assert_array_equal(first.low, again.low)
    for pair in (other, another):
        assert pair.high.shape != first.high.shape or not np.allclose(pair.high, first.high, atol=0.05)
    plain, whole = subjects().load(0, 3), straighten(read_volume(paths[0]))
    window = fit_window(simulate(whole, SMOOTH, jax.random.fold_in(jax.random.fold_in(jax.random.key(0), stable_hash("a.nii.gz")), 3)).data)
    np.testing.assert_allclose(plain.high, window.forward(whole.data), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "source, message",
    [
        ({"labels": "b", "zoom": [0.8, 1.2]}, "zoom, contrasts and cleared are of volumes"),
        ({"contrasts": 0.5}, "zoom, contrasts and cleared are of volumes"),
        ({"volumes": "a", "zoom": [1.2, 0.8]}, "the least and the greatest"),
        ({"volumes": "a", "zoom": [0.1, 1.0]}, r"from 0\.5 to 2"),
    ],
)
def test_variety_that_cannot_be_is_refused(source, message):
    with pytest.raises(ConfigError, match=message):
        from_dict({"mixture": [source], "acquisitions": ["1.5T"]}, DataConfig)


def test_a_source_with_variety_is_built_with_it_and_an_exported_file_knows_no_paths(tmp_path, head):
    write_volume(tmp_path / "a.nii.gz", head)
    source = {
        "volumes": str(tmp_path),
        "native": True,
        "zoom": [0.8, 1.2],
        "contrasts": 0.5,
        "smooth": 0.4,
        "acquisitions": [SMOOTH.model_dump()],
    }
    data = from_dict({"mixture": [source]}, DataConfig)
    sizes = {build_subjects(data, "train", 0).load(0, visit).grid.voxel_size for visit in range(6)}
    assert len(sizes) > 1
    bare = _nameless(data)
    assert bare.mixture[0].volumes is None
    assert bare.mixture[0].variety == Variety()
    DataConfig.model_validate(bare.model_dump())  # as it is read again
