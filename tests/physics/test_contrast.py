"""Laws of contrast: limits and extrema of the signal equations, the order of tissues, what a change of contrast keeps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.physics.contrast import (
    TISSUES,
    Flair,
    Flash,
    Mprage,
    SpinEcho,
    Tissue,
    change_contrast,
    ernst_angle,
    gamma,
    null_time,
    signal,
)

FIELDS = sorted(TISSUES)
BRAIN = ("csf", "grey", "white")
WATER = Tissue(1000.0, 100.0, 50.0, 0.8)
SEQUENCES = [Flash(20.0, 4.0, 20.0), SpinEcho(4000.0, 90.0), Flair(9000.0, 2500.0, 100.0), Mprage(2300.0, 1000.0, 3.0, 9.0)]


def of(field, sequence, tissues=BRAIN):
    return [float(signal(TISSUES[field][t], sequence)) for t in tissues]


@pytest.mark.parametrize("t1", [300.0, 1200.0, 4300.0])
@pytest.mark.parametrize("repetition", [5.0, 30.0, 500.0])
def test_the_ernst_angle_makes_the_most_of_a_gradient_echo(t1, repetition):
    tissue = WATER._replace(t1=t1)
    best = ernst_angle(t1, repetition)
    slope = jax.grad(lambda flip: signal(tissue, Flash(repetition, 3.0, flip)))(best)
    assert abs(slope) < 1e-5
    angles = jnp.linspace(0.5, 90.0, 400)
    assert signal(tissue, Flash(repetition, 3.0, best)) >= signal(tissue, Flash(repetition, 3.0, angles)).max() - 1e-6


def test_without_waiting_for_an_echo_after_a_long_rest_every_sequence_reads_the_proton_density():
    for sequence in (Flash(1e6, 0.0, 90.0), SpinEcho(1e6, 0.0), Flair(5e5, 2.5e5, 0.0), Mprage(1e6, 5e5, 0.0, 90.0, pulses=0)):
        np.testing.assert_allclose(signal(WATER, sequence), WATER.pd, rtol=1e-5)


@pytest.mark.parametrize(
    "sequence, timings, message",
    [
        (Flash, (20.0, 25.0, 20.0), "echo to repetition must not be below 0, got -5 ms"),
        (Flash, (20.0, -1.0, 20.0), "echo time must not be below 0, got -1 ms"),
        (SpinEcho, (80.0, 90.0), "echo to repetition must not be below 0, got -10 ms"),
        (SpinEcho, (jnp.array([4000.0, 80.0]), 90.0), "got -10 ms"),
        (Flair, (2550.0, 2500.0, 100.0), "echo to repetition must not be below 0, got -50 ms"),
        (Mprage, (2300.0, 500.0, 3.0, 9.0), "delay from inversion to first pulse must not be below 0, got -60 ms"),
        (Mprage, (1500.0, 1000.0, 3.0, 9.0), "rest from last pulse to repetition must not be below 0, got -60 ms"),
        (Mprage, (2300.0, 1000.0, 8.0, 9.0), "echo to next pulse must not be below 0, got -1 ms"),
    ],
)
def test_timings_that_cannot_be_are_refused_and_what_is_wrong_is_said(sequence, timings, message):
    with pytest.raises(ValueError, match=message):
        sequence(*timings)


def test_traced_timings_are_taken_as_they_are():
    assert jnp.isfinite(jax.jit(lambda echo: signal(WATER, SpinEcho(80.0, echo)))(90.0))


def test_a_gradient_echo_without_relaxation_between_pulses_is_a_train_of_the_bloch_equation():
    """The steady state of m ↦ 1 − (1 − m cos α) e^(−TR/T1), iterated."""
    angle, decay, m = np.deg2rad(20.0), np.exp(-20.0 / WATER.t1), 1.0
    for _ in range(2000):
        m = 1 - (1 - m * np.cos(angle)) * decay
    expected = WATER.pd * m * np.sin(angle) * np.exp(-4.0 / WATER.t2_star)
    np.testing.assert_allclose(signal(WATER, Flash(20.0, 4.0, 20.0)), expected, rtol=1e-5)


def test_mprage_is_the_steady_state_of_its_own_train_of_pulses():
    """Pulse by pulse for twenty repetitions, against the closed form."""
    s = Mprage(2300.0, 1000.0, 3.0, 9.0, spacing=7.0, pulses=160)
    relax = lambda m, t: 1 + (m - 1) * np.exp(-t / WATER.t1)  # noqa: E731
    m, read = 1.0, 0.0
    for _ in range(20):
        m = relax(-s.efficiency * m, s.inversion - 80 * s.spacing)
        for pulse in range(160):
            read = m if pulse == 80 else read
            m = relax(m * np.cos(np.deg2rad(s.flip)), s.spacing)
        m = relax(m, s.repetition - (s.inversion - 80 * s.spacing) - 160 * s.spacing)
    expected = WATER.pd * read * np.sin(np.deg2rad(s.flip)) * np.exp(-s.echo / WATER.t2_star)
    np.testing.assert_allclose(signal(WATER, s), expected, rtol=1e-5)


@pytest.mark.parametrize("field", FIELDS)
def test_flair_is_blind_to_fluid_and_sees_lesions_brightest(field):
    tissues = TISSUES[field]
    flair = Flair(9000.0, null_time(tissues["csf"].t1, 9000.0), 110.0)
    csf, grey, white, lesion = of(field, flair, (*BRAIN, "lesion"))
    assert csf < 1e-4
    assert lesion > grey > white > csf


@pytest.mark.parametrize("field", FIELDS)
def test_the_order_of_the_brains_tissues_is_that_of_the_textbook(field):
    csf, grey, white, lesion = of(field, Mprage(2300.0, 1000.0, 3.0, 8.0), (*BRAIN, "lesion"))
    assert white > lesion > csf  # dark in white matter
    assert white > grey > csf
    csf, grey, white, lesion = of(field, Flash(20.0, 3.0, 25.0), (*BRAIN, "lesion"))
    assert white > grey > csf
    assert white > lesion
    csf, grey, white, lesion = of(field, SpinEcho(5000.0, 90.0), (*BRAIN, "lesion"))
    assert csf > lesion > grey > white
    csf, grey, white, lesion = of(field, SpinEcho(10000.0, 10.0), (*BRAIN, "lesion"))
    assert lesion > white
    assert csf > grey > white


def test_t1_rises_with_the_field_and_t2_star_falls():
    for tissue in TISSUES[1.5]:
        parameters = [TISSUES[field][tissue] for field in FIELDS]
        rises = np.diff([p.t1 for p in parameters])
        assert (rises == 0).all() if tissue == "csf" else (rises > 0).all()  # fluid has no dispersion [Rooney 2007]
        assert (np.diff([p.t2_star for p in parameters]) <= 0).all()
        assert all(p.t1 > p.t2 >= p.t2_star for p in parameters)
        assert all(0 < p.pd <= 1 for p in parameters)


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda s: type(s).__name__)
def test_signal_falls_with_echo_time_grows_with_proton_density_and_takes_maps(sequence):
    later = dataclasses.replace(sequence, echo=sequence.echo + 3)
    assert signal(WATER, later) < signal(WATER, sequence)
    assert signal(WATER._replace(pd=0.9), sequence) > signal(WATER, sequence)
    maps = Tissue(*(jnp.full((2, 3), x) for x in WATER))
    np.testing.assert_allclose(signal(maps, sequence), np.full((2, 3), signal(WATER, sequence)), rtol=1e-6)


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda s: type(s).__name__)
def test_signal_is_differentiable_in_every_tissue_parameter(sequence):
    gradient = jax.grad(lambda tissue: signal(tissue, sequence))(WATER)
    for name in Tissue._fields:
        step = 1e-2 * getattr(WATER, name)
        there, back = (signal(WATER._replace(**{name: getattr(WATER, name) + d}), sequence) for d in (step, -step))
        np.testing.assert_allclose(getattr(gradient, name), (there - back) / (2 * step), rtol=2e-2, atol=1e-6)


def test_a_long_t1_darkens_what_is_weighted_by_t1_and_a_long_t2_brightens_what_is_weighted_by_t2():
    t1, t2 = jnp.linspace(300, 4000, 30), jnp.linspace(30, 2000, 30)
    assert (jnp.diff(signal(Tissue(t1, 90.0, 50.0, 0.8), Flash(20.0, 3.0, 25.0))) < 0).all()
    assert (jnp.diff(signal(Tissue(t1, 90.0, 50.0, 0.8), SpinEcho(500.0, 15.0))) < 0).all()
    assert (jnp.diff(signal(Tissue(1000.0, t2, 50.0, 0.8), SpinEcho(5000.0, 90.0))) > 0).all()


# ------------------------------------------------------------------------------------------------------ images that exist


@pytest.mark.parametrize("exponent", [0.6, 1.0, 1.7])
def test_gamma_is_monotone_and_keeps_zero_and_the_largest_value(exponent):
    image = jnp.array([0.0, 0.01, 0.4, 0.9, 2.5])
    changed = gamma(image, exponent)
    assert changed[0] == 0
    np.testing.assert_allclose(changed[-1], 2.5, rtol=1e-6)
    assert (jnp.diff(changed) > 0).all()
    np.testing.assert_allclose(gamma(changed, 1 / exponent), image, rtol=1e-4)
    np.testing.assert_array_equal(gamma(jnp.zeros(3), exponent), np.zeros(3))


def test_a_change_of_contrast_moves_the_means_and_keeps_the_texture():
    labels = jnp.arange(24).reshape(2, 3, 4) % 3
    before, after = jnp.array([0.1, 0.5, 0.8]), jnp.array([0.9, 0.6, 0.3])
    texture = 1 + 0.05 * jax.random.normal(jax.random.key(0), labels.shape)
    changed = change_contrast(before[labels] * texture, labels, before, after)
    np.testing.assert_allclose(changed, after[labels] * texture, rtol=1e-5)
    np.testing.assert_allclose(change_contrast(changed, labels, after, before), before[labels] * texture, rtol=1e-5)


def test_probabilities_keep_partial_volume_and_a_tissue_without_signal_gets_its_own():
    share = jnp.linspace(0, 1, 5)
    probabilities = jnp.stack([share, 1 - share])[:, :, None, None]  # [K, X, 1, 1]
    before, after = jnp.array([0.0, 0.5]), jnp.array([0.2, 1.0])
    image = jnp.tensordot(before, probabilities, 1)
    changed = change_contrast(image, probabilities, before, after)
    np.testing.assert_allclose(changed, jnp.tensordot(after, probabilities, 1), rtol=1e-5)
