"""Laws of simulated acquisitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxsr.physics.acquisition import (
    Acquisition,
    acquire,
    acquired_shape,
    describe_draw,
    foreground_mean,
    known_acquisitions,
    named_acquisition,
    settle,
)
from jaxsr.physics.blur import gaussian_blur
from jaxsr.physics.contrast import gamma
from jaxsr.physics.fields import bias_field
from jaxsr.physics.kspace import fourier_resample
from jaxsr.physics.noise import rician

CLEAN = Acquisition(voxel_size=(2.0, 2.0, 2.0), snr=(1e9, 1e9), bias=(0.0, 0.0))
SHAPE = (20, 24, 18)


@functools.cache
def ball(shape=SHAPE):
    """A bright ball in air, off the centre."""
    x, y, z = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) / n for n in shape], indexing="ij")
    return jnp.asarray(((x - 0.05) ** 2 + y**2 + (z + 0.1) ** 2 < 0.09).astype(np.float32))


def changed(acquisition, **settings):
    return Acquisition(**{**acquisition.model_dump(), **settings})


def centre_of_mass(x):
    """In units of the field of view, from its centre."""
    x = np.asarray(x, np.float64)
    return [(x.sum(tuple(a for a in range(3) if a != axis)) @ ((np.arange(n) + 0.5) / n - 0.5)) / x.sum() for axis, n in enumerate(x.shape)]


@pytest.mark.parametrize("name, size", [("1.5T", 2.0), ("3T", 1.5)])
def test_the_named_acquisitions_have_the_papers_voxel_sizes(name, size):
    assert named_acquisition(name).voxel_size == (size, size, size)
    assert named_acquisition(name).slice_axis is None


def test_an_unknown_acquisition_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'7T'; known: 1\.5T, 3T"):
        named_acquisition("7T")


@pytest.mark.parametrize(
    "voxel_size, shape", [((1, 1, 1), (10, 12, 9)), ((0.7, 0.7, 0.7), (7, 8, 6)), ((2, 2, 2), SHAPE), ((1, 4, 1), (10, 24, 9))]
)
def test_the_acquired_grid_covers_the_field_of_view_and_is_never_finer_than_the_truth(voxel_size, shape):
    assert acquired_shape(SHAPE, voxel_size, CLEAN) == shape
    assert acquire(jax.random.key(0), ball(), voxel_size, CLEAN).shape == shape


@pytest.mark.parametrize("slice_axis", [None, 2])
def test_the_field_of_view_stays_where_it_is(slice_axis):
    acquired = acquire(jax.random.key(0), ball(), (1.0, 1.0, 1.0), changed(CLEAN, slice_axis=slice_axis))
    # Magnitudes turn the ringing below zero up, which moves the centre a little.
    np.testing.assert_allclose(centre_of_mass(acquired), centre_of_mass(ball()), atol=0.01)


def test_without_noise_and_bias_it_is_the_magnitude_of_truncated_k_space():
    acquired = acquire(jax.random.key(0), ball(), (1.0, 1.0, 1.0), CLEAN)
    np.testing.assert_allclose(acquired, jnp.abs(fourier_resample(ball(), acquired.shape)), atol=1e-5)


@pytest.mark.parametrize("thickness", [2, 3])
def test_slices_of_a_rectangular_profile_without_gaps_are_block_averages(thickness):
    """Every depth belongs to one slice, so slices of k voxels are means of k voxels, odd k or even."""
    acquisition = changed(CLEAN, voxel_size=(1.0, 1.0, float(thickness)), slice_axis=2, profile="rectangular")
    acquired = acquire(jax.random.key(0), ball(), (1.0, 1.0, 1.0), acquisition)
    blocks = ball().reshape(*SHAPE[:2], SHAPE[2] // thickness, thickness).mean(-1)
    np.testing.assert_allclose(acquired, blocks, atol=1e-5)


def test_the_same_key_gives_the_same_bits_and_another_another():
    first, again, other = (acquire(jax.random.key(k), ball(), (1.0, 1.0, 1.0), named_acquisition("1.5T")) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.99


@pytest.mark.parametrize("snr", [10.0, 40.0])
def test_the_noise_is_the_foregrounds_mean_over_the_stated_signal_to_noise_ratio(snr):
    """In air, E[y²] = 2σ² with σ = mean foreground / SNR."""
    volume = jnp.zeros((40, 40, 40)).at[:20].set(0.8)
    acquisition = changed(CLEAN, voxel_size=(1.0, 1.0, 1.0), snr=(snr, snr))
    air = acquire(jax.random.key(5), volume, (1.0, 1.0, 1.0), acquisition)[20:]
    assert float(jnp.sqrt((air**2).mean() / 2)) == pytest.approx(float(foreground_mean(volume)) / snr, rel=0.01)
    assert float(foreground_mean(volume)) == pytest.approx(0.8)


@pytest.mark.parametrize("place", [(10, 12, 7), (0, 0, 0)])  # in the ball, in air
def test_a_hot_voxel_makes_no_noise(place):
    """Fifty times as bright as all else, it takes nothing from the foreground and adds no more than the brightest voxel."""
    hot = foreground_mean(ball().at[place].set(50.0))
    assert float(hot) == pytest.approx(float(foreground_mean(ball())), rel=1e-6)


def test_without_hot_voxels_the_foreground_is_what_is_above_a_tenth_of_the_maximum():
    x = gaussian_blur(jax.random.uniform(jax.random.key(0), SHAPE) * ball(), (0.8,) * 3, (0, 1, 2))
    assert float(foreground_mean(x)) == pytest.approx(float(x[x > 0.1 * x.max()].mean()), rel=1e-6)


def test_ranges_are_drawn_from_within():
    """With the bias the only unknown, its strength is between the stated ends and differs from key to key."""
    acquisition = changed(CLEAN, voxel_size=(1.0, 1.0, 1.0), bias=(0.1, 0.2))
    strengths = [float(jnp.log(acquire(jax.random.key(k), jnp.ones((8, 8, 8)), (1.0,) * 3, acquisition)).std()) for k in range(8)]
    assert all(0.099 <= s <= 0.201 for s in strengths)
    assert np.std(strengths) > 0.01


def test_a_degradation_is_equivariant_to_units():
    """Scanner units are arbitrary: ten times the signal is ten times the image, noise and all."""
    one, ten = (acquire(jax.random.key(1), scale * ball(), (1.0, 1.0, 1.0), named_acquisition("3T")) for scale in (1, 10))
    np.testing.assert_allclose(ten, 10 * one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, size, snr, strength", [("1.5T", 2.0, (20, 40), (0, 0.02)), ("3T", 1.5, (30, 60), (0, 0.03))])
def test_the_papers_acquisitions_give_what_published_figures_were_made_of(name, size, snr, strength):
    """The formula and the draws written out, as they were when these two were all there was."""
    key, x = jax.random.key(3), ball()
    keys = [jax.random.fold_in(key, i) for i in range(4)]
    field = bias_field(keys[0], SHAPE, jax.random.uniform(keys[1], minval=strength[0], maxval=strength[1]))
    signal = fourier_resample(x * field, [round(n / size) for n in SHAPE])
    expected = rician(keys[2], signal, foreground_mean(x) / jax.random.uniform(keys[3], minval=snr[0], maxval=snr[1]))
    np.testing.assert_allclose(acquire(key, x, (1.0, 1.0, 1.0), named_acquisition(name)), expected, atol=1e-5)


def test_a_batch_is_a_vmap_over_keys_and_volumes():
    keys = jax.random.split(jax.random.key(0), 2)
    x = jnp.stack([ball(), 2 * ball()[::-1]])
    batch = jax.vmap(lambda k, v: acquire(k, v, (1.0, 1.0, 1.0), named_acquisition("1.5T")))(keys, x)
    np.testing.assert_allclose(batch[1], acquire(keys[1], x[1], (1.0, 1.0, 1.0), named_acquisition("1.5T")), atol=2e-5)


@pytest.mark.parametrize("name", ["64mT", "thick-slice"])
def test_every_named_acquisition_gives_a_finite_magnitude_on_its_grid_with_the_head_in_its_place(name):
    shape = (40, 44, 48)
    key, x = jax.random.key(1), ball(shape)
    acquired = acquire(key, x, (1.0, 1.0, 1.0), named_acquisition(name))
    assert acquired.shape == acquired_shape(shape, (1.0, 1.0, 1.0), settle(key, named_acquisition(name)))
    assert bool((jnp.isfinite(acquired) & (acquired >= 0)).all())
    inside = jnp.maximum(acquired - 0.4, 0)  # noise in air has its centre of mass in the middle
    np.testing.assert_allclose(centre_of_mass(inside), centre_of_mass(ball(shape)), atol=0.02)


# ------------------------------------------------------------------------------------------------ sizes


def test_a_range_of_sizes_draws_one_of_five_values_by_the_key():
    thick = named_acquisition("thick-slice")
    drawn = [settle(jax.random.key(k), thick) for k in range(40)]
    assert {a.voxel_size[2] for a in drawn} == {3.0, 3.75, 4.5, 5.25, 6.0}
    assert {a.gap for a in drawn} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert all(a.settled and a.voxel_size[:2] == (1.0, 1.0) for a in drawn)
    assert drawn == [settle(jax.random.key(k), thick) for k in range(40)]


def test_equal_ranges_draw_the_same_value():
    """The plane stays square."""
    drawn = [settle(jax.random.key(k), named_acquisition("64mT")).voxel_size for k in range(20)]
    assert all(x == y for x, y, _ in drawn)
    assert len(set(drawn)) == 5


def test_slices_are_as_far_apart_as_thickness_and_gap_say():
    thick = changed(CLEAN, voxel_size=(1, 1, 4), gap=2, slice_axis=2)
    assert thick.spacing == (1, 1, 6)
    assert acquired_shape((24, 24, 24), (1, 1, 1), thick) == (24, 24, 4)
    assert acquired_shape((24, 24, 24), (1, 1, 1), changed(thick, gap=-2)) == (24, 24, 12)


def test_what_lies_in_the_gaps_is_lost_and_an_overlap_sees_it_twice():
    sheet = jnp.zeros((8, 8, 24)).at[:, :, 6].set(1.0)  # slices 4 thick are centred on 2.5, 8.5, … and reach from 0.5 to 4.5, 6.5 to …
    thick = changed(CLEAN, voxel_size=(1, 1, 4), slice_axis=2, profile="rectangular")
    seen = {gap: acquire(jax.random.key(0), sheet, (1, 1, 1), changed(thick, gap=gap)) for gap in (2, 0, -2)}
    assert [int((image[0, 0] > 0.1).sum()) for image in seen.values()] == [0, 1, 2]


def test_a_size_that_is_drawn_is_refused_where_the_key_is_traced():
    with pytest.raises(ValueError, match=r"thick-slice draws its voxel size.*settle it outside"):
        jax.jit(lambda k: acquire(k, ball(), (1.0, 1.0, 1.0), named_acquisition("thick-slice")))(jax.random.key(0))
    with pytest.raises(ValueError, match="settle it before"):
        acquired_shape(SHAPE, (1, 1, 1), named_acquisition("thick-slice"))
    assert named_acquisition("thick-slice").typical.spacing == (1.0, 1.0, 5.0)


# ------------------------------------------------------------------------------------------------ what is off


def operations(acquisition):
    """The primitives of the program, those within others too."""
    found = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            found.append(equation.primitive.name)
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr") or hasattr(v, "eqns")):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    visit(getattr(inner, "jaxpr", inner))

    visit(jax.make_jaxpr(lambda k, v: acquire(k, v, (1.0, 1.0, 1.0), acquisition))(jax.random.key(0), ball()).jaxpr)
    return found


def test_what_is_off_is_not_in_the_program():
    off = operations(Acquisition(voxel_size=(2, 1, 1)))
    assert off.count("fft") == 2
    assert not {"random_bits", "pow", "dot_general", "exp", "scan", "while"} & set(off)
    assert operations(Acquisition(voxel_size=(1, 1, 1))).count("fft") == 0
    for settings in (
        {"snr": 20},
        {"bias": 0.1},
        {"gamma": [0.5, 0.8]},
        {"blur": 2},
        {"motion": {}},
        {"ghosting": {}},
        {"window": "hamming"},
    ):
        assert len(operations(Acquisition(voxel_size=(2, 1, 1), **settings))) > len(off)


# ------------------------------------------------------------------------------------------------ noise, contrast, reports


@pytest.mark.parametrize(
    "settings",
    [
        *({"window": window} for window in ("ellipse", "hamming", "tukey")),
        *(
            {"window": window, "partial_fourier": {"fraction": 0.6, "fill": fill}}
            for window in ("box", "ellipse", "hamming", "tukey")
            for fill in ("zero", "conjugate")
        ),
        {"partial_fourier": {"fraction": 0.75, "fill": "conjugate"}, "slice_axis": 2},
        {"coils": 4},
    ],
)
def test_the_stated_signal_to_noise_ratio_is_that_of_the_image_whatever_is_made_of_the_samples(settings):
    """Where the signal is strong, |x + n| = x + Re n but for O(n²): the magnitude varies as the real channel does. A window smooths the
    noise, so that of the samples is larger; conjugates put that of both channels into the real one."""
    volume = jnp.full((32, 33, 32), 0.8)
    acquisition = changed(CLEAN, voxel_size=(1.0, 1.0, 1.0), snr=(50.0, 50.0), **settings)
    tissue = acquire(jax.random.key(5), volume, (1.0, 1.0, 1.0), acquisition)
    assert float(tissue.std()) == pytest.approx(0.8 / 50, rel=0.025)


def test_the_contrast_is_drawn_on_a_logarithmic_scale_and_acquired():
    acquisition = Acquisition(voxel_size=(1, 1, 1), gamma=(0.5, 2.0))
    gammas = np.array([describe_draw(jax.random.key(k), acquisition)["gamma"] for k in range(200)])
    assert ((gammas >= 0.5) & (gammas <= 2)).all()
    assert np.log(gammas).mean() == pytest.approx(0, abs=0.1)
    x = 4 * jax.random.uniform(jax.random.key(0), SHAPE)
    np.testing.assert_allclose(acquire(jax.random.key(2), x, (1, 1, 1), acquisition), gamma(x, gammas[2]), atol=1e-4)


def test_what_was_drawn_can_be_told_without_acquiring_anything():
    everything = changed(
        named_acquisition("thick-slice"), blur=[1, 2], gamma=[0.5, 2], motion={"jumps": 2}, ghosting={"every": 3, "axis": 0}
    )
    facts = describe_draw(jax.random.key(4), everything)
    assert set(facts) == {"voxel_size", "gap", "bias", "snr", "gamma", "blur", "rotation", "translation", "ghost", "ghost_phase", "poses"}
    assert facts["voxel_size"][2] == settle(jax.random.key(4), everything).voxel_size[2]
    assert 20 <= facts["snr"] <= 50
    assert np.shape(facts["poses"]["angles"]) == (3, 3)
    assert describe_draw(jax.random.key(4), Acquisition(voxel_size=(1, 1, 1))) == {"voxel_size": [1, 1, 1]}


@pytest.mark.parametrize(
    "settings, worse", [({"motion": {"rotation": 3, "translation": 3}}, 0.05), ({"ghosting": {"intensity": 0.3}}, 0.1)]
)
def test_artefacts_of_an_acquisition_add_to_its_image_and_nothing_where_they_have_no_strength(settings, worse):
    plain = Acquisition(voxel_size=(2, 2, 2))
    image = acquire(jax.random.key(0), ball(), (1.0, 1.0, 1.0), plain)
    ((part, values),) = settings.items()
    spoilt = acquire(jax.random.key(0), ball(), (1.0, 1.0, 1.0), changed(plain, **settings))
    assert float(jnp.abs(spoilt - image).max()) > worse
    none = dict.fromkeys(values, 0)
    np.testing.assert_allclose(acquire(jax.random.key(0), ball(), (1.0, 1.0, 1.0), changed(plain, **{part: none})), image, atol=1e-5)


def test_the_names_are_those_of_the_specification():
    assert known_acquisitions() == ("1.5T", "3T", "64mT", "thick-slice")


def test_a_warp_moves_signal_by_at_most_its_strength_and_keeps_its_sum():
    """A plateau away from the edges: what is stretched is thinned by the Jacobian, so the signal as a whole is kept."""
    x = gaussian_blur(ball((40, 44, 36)), (4.0, 4.0, 4.0), (0, 1, 2))
    still = Acquisition(voxel_size=(1, 1, 1))
    image, bent = (acquire(jax.random.key(1), x, (1.0, 1.0, 1.0), a) for a in (still, changed(still, warp=3)))
    assert float(jnp.abs(bent - image).max()) > 0.1
    assert float(bent.sum()) == pytest.approx(float(image.sum()), rel=0.01)
    away = ndimage.distance_transform_edt(np.asarray(image < 0.5))[np.asarray(bent > 0.5)]
    assert 1 <= away.max() <= 4  # voxels from the half-height contour, and half a voxel on either side
    assert describe_draw(jax.random.key(1), changed(still, warp=3))["warp"] == 3
