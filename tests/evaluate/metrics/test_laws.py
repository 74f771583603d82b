"""What holds for every metric by its name: perfection, batches, masks, flips, units, two and three dimensions."""

import inspect

import jax
import numpy as np
import pytest

from jaxsr.evaluate.metrics.registry import METRICS

GIVEN = {"data_range": 1.0, "voxel_size": 1.0}
PERFECT = {
    "psnr": np.inf,
    "ssim": 1,
    "ms_ssim": 1,
    "vif": 1,
    "histogram_match": 1,
    "resolution": 2,
    "coarsest_resolution": 2,
}  # two voxels of 1 mm; others 0
PAIRED = [
    name for name, metric in METRICS.items() if metric.operands == "images" and "weights" not in metric.needs
]  # LPIPS: test_perceptual.py
LOCAL = {"ssim": 5, "local_contrast_error": 5, "hfen": 7, "gradient_error": 1}  # voxels that a window reaches beyond its centre
SMALL = [name for name in PAIRED if METRICS[name].least <= 24]
POINTWISE = ("mse", "rmse", "nrmse", "mae", "psnr", "histogram_match")
side = {name: 176 if name == "ms_ssim" else 41 if name == "vif" else 24 for name in PAIRED}


def score(name, x, y, **more):
    return METRICS[name].function(x, y, **{key: GIVEN[key] for key in METRICS[name].needs}, **more)


def slices(name, batch=2, seed=0):
    """Textured references in 0 to 1 and noisy copies, `[B, H, W, 1]`."""
    n = side[name]
    y, noise = np.random.default_rng(seed).random((2, batch, n, n, 1), np.float32)
    y = np.sqrt(y * np.linspace(0.2, 1, n, dtype=np.float32)[:, None])
    return y + 0.2 * (noise - 0.5), y


def volumes(shape=(24, 26, 28), seed=0):
    y, noise = np.random.default_rng(seed).random((2, *shape), np.float32)
    return y + 0.2 * (noise - 0.5), y


@pytest.mark.parametrize("name", PAIRED)
def test_an_image_equals_itself(name):
    _, y = slices(name)
    np.testing.assert_allclose(score(name, y, y), PERFECT.get(name, 0), atol=2e-6)


@pytest.mark.parametrize("name", [n for n in PAIRED if n != "histogram_match"])
def test_better_is_better(name):
    """Half the noise scores better; a resolution may be the grid's already. Histograms do not see noise."""
    x, y = slices(name)
    better = np.asarray(score(name, (x + y) / 2, y) - score(name, x, y)) * {"higher": 1, "lower": -1}[METRICS[name].better]
    assert (better >= 0).all()
    assert "resolution" in name or (better > 0).all()


@pytest.mark.parametrize("name", PAIRED)
def test_a_batch_is_its_images_one_by_one(name):
    x, y = slices(name)
    alone = [score(name, x[i : i + 1], y[i : i + 1])[0] for i in range(len(x))]
    np.testing.assert_allclose(score(name, x, y), alone, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_volumes_can_be_mapped_over(name):
    x, y = volumes((2, 24, 26, 28))
    mapped = jax.vmap(lambda x, y: score(name, x, y))(x, y)
    np.testing.assert_allclose(score(name, x[..., None], y[..., None]), mapped, rtol=1e-5)


@pytest.mark.parametrize("name", PAIRED)
def test_flips_and_turns_change_nothing(name):
    x, y = slices(name)
    for turn in (lambda a: a[:, ::-1], lambda a: a[:, :, ::-1], lambda a: a.swapaxes(1, 2)):
        np.testing.assert_allclose(score(name, turn(x), turn(y)), score(name, x, y), rtol=2e-5)


@pytest.mark.parametrize("name", [n for n in SMALL if n not in ("gmsd", "coarsest_resolution")])
# GMSD sees zeros beyond the first and last slice; along an axis where nothing varies nothing is resolved.
def test_a_volume_of_equal_slices_scores_as_the_slice(name):
    x, y = slices(name, batch=1)
    stack = [np.repeat(image[0], side[name], axis=2) for image in (x, y)]
    np.testing.assert_allclose(score(name, *stack), score(name, x, y)[0], rtol=2e-4)


@pytest.mark.parametrize("name", [n for n in PAIRED if "mask" in inspect.signature(METRICS[n].function).parameters and n != "resolution"])
def test_a_mask_of_everything_is_no_mask(name):
    x, y = slices(name)
    np.testing.assert_allclose(score(name, x, y, mask=np.ones((1, 1, 1, 1), bool)), score(name, x, y), rtol=1e-5)


@pytest.mark.parametrize("name", [*POINTWISE, *LOCAL])
def test_a_box_as_mask_is_the_crop_with_what_windows_reach(name):
    x, y = volumes((30, 32, 34))
    low, high, reach = np.array([9, 10, 11]), np.array([21, 20, 24]), LOCAL.get(name, 0)
    mask = np.zeros(x.shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    crop = tuple(slice(a - reach, b + reach) for a, b in zip(low, high, strict=True))
    np.testing.assert_allclose(score(name, x, y, mask=mask), score(name, x[crop], y[crop]), rtol=1e-4)


@pytest.mark.parametrize("name", POINTWISE)
def test_errors_outside_the_mask_do_not_count(name):
    x, y = volumes()
    inside = np.random.default_rng(1).random(x.shape) < 0.4
    np.testing.assert_array_equal(score(name, np.where(inside, x, 7), y, mask=inside), score(name, x, y, mask=inside))


@pytest.mark.parametrize("name", [n for n in PAIRED if n not in ("mse", "rmse", "mae")])
@pytest.mark.parametrize("scale", [1e-6, 4096.0])
def test_the_unit_of_intensity_does_not_matter(name, scale):
    x, y = slices(name)
    needs = {**{key: GIVEN[key] for key in METRICS[name].needs}, **({"data_range": scale} if "data_range" in METRICS[name].needs else {})}
    np.testing.assert_allclose(METRICS[name].function(scale * x, scale * y, **needs), score(name, x, y), rtol=2e-5)


@pytest.mark.parametrize("name", [n for n in PAIRED if METRICS[n].least > 1])
def test_a_small_image_is_refused_with_its_sides(name):
    least = METRICS[name].least
    assert jax.eval_shape(lambda a: score(name, a, a), np.zeros((1, least, least, 1))).shape == (1,)
    with pytest.raises(ValueError, match=rf"at least {least} voxels on every side, got \({least - 1}, {least}\)"):
        score(name, *np.zeros((2, 1, least - 1, least, 1)))


@pytest.mark.parametrize("name", METRICS)
def test_what_a_metric_needs_are_its_keywords_without_default(name):
    parameters = list(inspect.signature(METRICS[name].function).parameters.values())
    required = {p.name for p in parameters[1 if METRICS[name].operands == "image" else 2 :] if p.default is p.empty}
    assert required == set(METRICS[name].needs)
    assert METRICS[name].masked == ("mask" in {p.name for p in parameters})
