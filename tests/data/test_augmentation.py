"""Laws of augmentation: one geometric draw for all maps of a slice, nothing folds, and what a map means stays true."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from jaxsr.data.augmentation import SPACING, AugmentConfig, Draw, bend, draw, jacobian, positions, take

SIDE = 96
ALL = AugmentConfig(rotation=8.0, scale=0.1, elastic=3.0, gamma=0.2)
ROWS, COLUMNS = np.meshgrid(np.arange(SIDE, dtype=np.float32), np.arange(SIDE, dtype=np.float32), indexing="ij")


def image(rows=ROWS, columns=COLUMNS):
    """Smooth, in -1…1, known everywhere."""
    return (np.sin(rows / 9) * np.cos(columns / 12) * 0.6 + 0.3 * np.sin((rows + 2 * columns) / 17)).astype(np.float32)


def displacement(rows=ROWS, columns=COLUMNS):
    return np.stack([2 * np.cos(rows / 30 + columns / 40), 1.5 * np.sin(columns / 35), np.cos(rows / 20)], -1).astype(np.float32)


def drawn(config, seed=0, crop=(SIDE, SIDE)):
    return draw(config, crop, np.random.default_rng(seed))


def whole(maps, how):
    return take(maps, (0, 0), (SIDE, SIDE), how)


INNER = (slice(24, -24), slice(24, -24))


# ------------------------------------------------------------------------------------------------ flips


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_flipping_twice_is_the_identity(flips):
    maps = {"high": image(), "gradient": displacement(), "labels": (image() > 0).astype(np.uint8), "mask": image() > 0.2}
    once = whole(maps, Draw(flips))
    assert not np.array_equal(once["high"], maps["high"])
    for name, x in whole(once, Draw(flips)).items():
        assert x.dtype == maps[name].dtype
        np.testing.assert_array_equal(x, maps[name])


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_the_gradient_of_a_flipped_image_is_its_flipped_gradient(flips):
    through = np.cos(ROWS)
    taken = whole({"high": image(), "gradient": np.stack([*np.gradient(image()), through], -1)}, Draw(flips))
    for component, expected in enumerate(np.gradient(taken["high"])):
        np.testing.assert_allclose(taken["gradient"][..., component], expected, atol=1e-6)
    np.testing.assert_array_equal(taken["gradient"][..., 2], whole({"bias": through}, Draw(flips))["bias"])


# ------------------------------------------------------------------------------------------------ warps


def test_without_a_warp_the_crop_is_the_crop():
    x = image()
    taken = take({"high": x, "labels": (x > 0).astype(np.uint8)}, (5, 7), (32, 48), drawn(AugmentConfig(flip=False)))
    np.testing.assert_array_equal(taken["high"], x[5:37, 7:55])
    np.testing.assert_array_equal(taken["labels"], x[5:37, 7:55] > 0)


@pytest.mark.parametrize("config", [AugmentConfig(flip=False, rotation=9.0), AugmentConfig(flip=False, elastic=4.0), ALL])
def test_a_warped_image_is_the_image_at_the_warped_positions(config):
    """The image is known everywhere, so this needs no interpolation. Crops see the same as the whole slice would, but for what is near."""
    how = drawn(config)._replace(exponents=(1.0, 1.0), flips=(False, False))
    expected = image(*positions((SIDE, SIDE), how))[INNER]
    np.testing.assert_allclose(whole({"high": image()}, how)["high"][INNER], expected, atol=2e-4)
    crop = (40, 32)
    how = drawn(config, crop=crop)._replace(exponents=(1.0, 1.0), flips=(False, False))
    rows, columns = positions(crop, how)
    taken = take({"low": image()}, (30, 28), crop, how)["low"]
    np.testing.assert_allclose(taken, image(rows + 30, columns + 28), atol=2e-4)


@pytest.mark.parametrize("order, name", [(3, "high"), (1, "bias"), (0, "labels")])
def test_maps_are_read_as_scipy_reads_them(order, name):
    x = np.random.default_rng(0).uniform(0, 200, (SIDE, SIDE)).astype(np.uint8 if order == 0 else np.float32)
    how = drawn(AugmentConfig(flip=False, rotation=10.0, elastic=3.0))
    expected = ndimage.map_coordinates(x, positions((SIDE, SIDE), how), order=order, mode="constant", cval=-1 if order == 3 else 0)
    ours = whole({name: x}, how)[name]
    away = np.abs(positions((SIDE, SIDE), how) - (SIDE - 1) / 2).max(0) < (SIDE - 1) / 2 - 0.1  # the last tenth of a pixel may round out
    np.testing.assert_allclose(ours[away], expected[away], atol=1e-3)
    beyond = np.abs(positions((SIDE, SIDE), how) - (SIDE - 1) / 2).max(0) > (SIDE - 1) / 2 + 0.1
    np.testing.assert_array_equal(ours[beyond], expected[beyond])
    assert beyond.any()


def test_a_rotation_is_about_the_middle_of_the_crop_by_the_angle_drawn():
    angles = []
    for seed in range(400):
        linear = drawn(AugmentConfig(flip=False, rotation=5.0), seed).linear
        np.testing.assert_allclose(linear @ linear.T, np.eye(2), atol=1e-12)
        angles.append(np.rad2deg(np.arctan2(linear[1, 0], linear[0, 0])))
    assert np.std(angles) == pytest.approx(5, rel=0.15)
    how = Draw(linear=linear)
    np.testing.assert_allclose(positions((9, 9), how)[:, 4, 4], [4, 4], atol=1e-6)


def test_magnification_has_the_spread_asked_for():
    sizes = [-np.log(np.linalg.det(drawn(AugmentConfig(scale=0.1), seed).linear)) / 2 for seed in range(400)]
    assert np.std(sizes) == pytest.approx(0.1, rel=0.15)


def test_the_jacobian_is_the_derivative_of_the_positions():
    how = drawn(ALL)
    p = positions((SIDE, SIDE), how).astype(np.float64)
    numeric = np.stack([np.gradient(p, axis=1), np.gradient(p, axis=2)], 1)[..., 1:-1, 1:-1]
    np.testing.assert_allclose(jacobian((SIDE, SIDE), how)[..., 1:-1, 1:-1], numeric, atol=2e-3)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_folds_however_strong_the_deformation(seed):
    """Control points at their limit in every sign pattern that a seed gives; Choi and Lee's bound is 1 / 2.046 of their spacing."""
    strongest = AugmentConfig(rotation=45.0, scale=0.5, elastic=14.0)
    rng = np.random.default_rng(seed)
    how = drawn(strongest, seed)
    assert np.abs(how.control).max() <= 0.45 * SPACING
    for control in (how.control, 0.45 * SPACING * rng.choice([-1.0, 1.0], how.control.shape)):
        (a, b), (c, d) = jacobian((SIDE, SIDE), how._replace(control=control))
        assert (a * d - b * c).min() > 0


def test_labels_and_mask_stay_on_the_image():
    """Where the image is clearly above or below the threshold that made them."""
    x = image()
    for seed in range(5):
        taken = whole({"high": x, "labels": 7 * (x > 0).astype(np.uint8), "mask": x > 0}, drawn(ALL, seed))
        assert taken["labels"].dtype == np.uint8
        assert taken["mask"].dtype == bool
        assert set(np.unique(taken["labels"])) <= {0, 7}
        np.testing.assert_array_equal(taken["labels"] > 0, taken["mask"])
        clear = (np.abs(bend(np.float32(0), np.exp(0.2)) - taken["high"]) > 0.35) & (taken["high"] > -0.999)  # gamma moves the threshold
        agree = (taken["labels"] > 0) == (taken["high"] > bend(np.float32(0), drawn(ALL, seed).exponents[0]))
        assert agree[clear].all()
        assert clear.mean() > 0.2


def test_rotating_a_slice_with_the_gradient_of_it_keeps_the_relation():
    how = Draw(linear=drawn(AugmentConfig(rotation=20.0)).linear)
    taken = whole({"high": image(), "gradient": np.stack([*np.gradient(image()), ROWS], -1)}, how)
    for component, expected in enumerate(np.gradient(taken["high"])):
        np.testing.assert_allclose(taken["gradient"][..., component][INNER], expected[INNER], atol=3e-3)


@pytest.mark.parametrize("config", [AugmentConfig(rotation=15.0), AugmentConfig(scale=0.2), AugmentConfig(elastic=3.0), ALL])
def test_distorting_and_augmenting_commute(config):
    """x distorted by g, then augmented, is x augmented, then distorted by the augmented g: to second order where the warp is curved."""
    how = drawn(config, 3)._replace(exponents=(1.0, 1.0))
    g = displacement()
    distorted = image(ROWS + g[..., 0], COLUMNS + g[..., 1])
    taken = whole({"high": distorted, "low": image(), "gradient": g}, how)
    at = np.stack([ROWS + taken["gradient"][..., 0], COLUMNS + taken["gradient"][..., 1]])
    again = ndimage.map_coordinates(taken["low"], at, order=3, mode="nearest")
    unturned = ndimage.map_coordinates(taken["low"], np.stack([ROWS, COLUMNS]) + np.moveaxis(g[..., :2], -1, 0), order=3, mode="nearest")
    error, without = (np.abs(x - taken["high"])[INNER].max() for x in (again, unturned))
    assert error < (0.02 if config.elastic else 0.003)
    assert without > 5 * error
    expected = np.moveaxis(positions((SIDE, SIDE), how), 0, -1)
    through = np.cos(expected[..., 0] / 20)
    np.testing.assert_allclose(
        whole({"gradient": g}, how._replace(flips=(False, False)))["gradient"][..., 2][INNER], through[INNER], atol=2e-3
    )


def logarithm(g):
    """log det(1 + ∇g) within the slice; nothing of it changes through it."""
    rows, columns = (np.stack(np.gradient(g[..., c]), -1) for c in (0, 1))
    return np.log((1 + rows[..., 0]) * (1 + columns[..., 1]) - rows[..., 1] * columns[..., 0])


@pytest.mark.parametrize("config", [AugmentConfig(), AugmentConfig(rotation=15.0), AugmentConfig(scale=0.2)])
def test_the_jacobian_of_an_augmented_displacement_is_the_augmented_jacobian(config):
    """Where φ is affine: in φ⁻¹ ∘ (1 + g) ∘ φ its own derivative cancels."""
    for seed in range(4):  # flips among them
        taken = whole({"gradient": displacement(), "jacobian": logarithm(displacement())}, drawn(config, seed))
        inner = taken["jacobian"][INNER][1:-1, 1:-1]
        np.testing.assert_allclose(inner, logarithm(taken["gradient"][INNER])[1:-1, 1:-1], atol=5e-4)
    assert np.ptp(inner) > 0.05


@pytest.mark.parametrize("config", [AugmentConfig(rotation=15.0, scale=0.2), AugmentConfig(elastic=3.0), ALL])
def test_signal_that_was_conserved_is_conserved_after_augmentation(config):
    """x(p + g) e^j = y, also where the warp is curved: to the order that displacements have there, as when distorting and augmenting."""
    how = drawn(config, 3)._replace(exponents=(1.0, 1.0))
    g, j = displacement(), (4 * logarithm(displacement())).astype(np.float32)
    conserved = np.exp(j) * (2 + image(ROWS + g[..., 0], COLUMNS + g[..., 1]))
    taken = whole({"high": 2 + image(), "low": conserved, "gradient": g, "jacobian": j}, how)
    at = np.stack([ROWS + taken["gradient"][..., 0], COLUMNS + taken["gradient"][..., 1]])
    again = ndimage.map_coordinates(taken["high"], at, order=3, mode="nearest")
    error, without = (np.abs(np.exp(x) * again - taken["low"])[INNER].max() for x in (taken["jacobian"], j))
    assert error < (4e-3 if config.elastic else 5e-4)
    assert without > 5 * error


def test_beyond_the_slice_there_is_background_in_images_and_nothing_in_maps():
    maps = {name: image() + 3 for name in ("high", "reference", "bias", "jacobian")}
    maps |= {"gradient": displacement() + 9, "mask": ROWS >= 0}
    maps["labels"] = np.full((SIDE, SIDE), 5, np.uint8)
    for how in (Draw(), drawn(AugmentConfig(rotation=5.0, elastic=2.0), crop=(SIDE + 80, SIDE + 80))):
        taken = take(maps, (-40, -40), (SIDE + 80, SIDE + 80), how)
        corner = {name: x[:8, :8] for name, x in taken.items()}
        assert (corner["high"] == -1).all()
        assert (corner["reference"] == -1).all()
        assert all(not corner[name].any() for name in ("bias", "gradient", "jacobian", "mask", "labels"))
        assert all(x.shape[:2] == (SIDE + 80, SIDE + 80) for x in taken.values())
        assert taken["mask"][50:-50, 50:-50].all()


def test_float16_maps_are_read_as_their_float32_values_would_be():
    half = {"high": image().astype(np.float16), "gradient": displacement().astype(np.float16)}
    single = {name: x.astype(np.float32) for name, x in half.items()}
    for how in (Draw((True, False)), drawn(ALL)):
        for name, x in whole(half, how).items():
            assert x.dtype == np.float32
            assert x.flags.c_contiguous
            np.testing.assert_array_equal(x, whole(single, how)[name])


# ------------------------------------------------------------------------------------------------ gamma and draws


@pytest.mark.parametrize("exponent", [0.5, 0.9, 1.3, 2.0])
def test_gamma_is_monotone_keeps_the_ends_of_the_window_and_has_an_inverse_inside(exponent):
    x = np.linspace(-1.5, 2.0, 701, dtype=np.float32)
    bent = bend(x, exponent)
    assert (np.diff(bent) > 0).all()
    np.testing.assert_allclose(bend(np.array([-1, 1], np.float32), exponent), [-1, 1], atol=1e-6)
    inside = np.abs(x) <= 1
    np.testing.assert_allclose(bend(bent, 1 / exponent)[inside], x[inside], atol=2e-5)
    np.testing.assert_allclose(np.diff(bent)[x[:-1] > 1], np.float32(exponent) * 0.005, rtol=1e-2)


def test_high_and_low_are_bent_alike_the_reference_on_its_own_and_maps_not_at_all():
    x = image()
    how = drawn(AugmentConfig(flip=False, gamma=0.3))
    taken = whole(dict.fromkeys(("high", "low", "reference", "bias"), x), how)
    np.testing.assert_array_equal(taken["high"], bend(x, how.exponents[0]))
    np.testing.assert_array_equal(taken["high"], taken["low"])
    np.testing.assert_array_equal(taken["reference"], bend(x, how.exponents[1]))
    np.testing.assert_array_equal(taken["bias"], x)
    assert how.exponents[0] != how.exponents[1]


def test_a_draw_is_a_function_of_its_generator_and_flips_come_first():
    """So what is added to the flips of an old config leaves them as they were."""
    for seed in range(10):
        first, again, flips = drawn(ALL, seed), drawn(ALL, seed), drawn(AugmentConfig(), seed)
        np.testing.assert_array_equal(first.control, again.control)
        assert first.flips == flips.flips
        assert flips.linear is flips.control is None


@pytest.mark.parametrize("wrong", [{"rotation": 50.0}, {"elastic": 15.0}, {"scale": -0.1}, {"shear": 1.0}])
def test_what_would_fold_or_is_not_known_is_refused(wrong):
    with pytest.raises(ValidationError):
        AugmentConfig(**wrong)
