"""Statistics against closed forms, worked examples and scipy."""

import itertools

import numpy as np
import pytest
from scipy import stats

from jaxsr.evaluate.statistics import EXACT, bootstrap_interval, holm, paired_tests, signed_rank


def interval(values, **how):
    return bootstrap_interval(tuple(float(v) for v in values), **how)


def test_six_differences_of_one_sign_have_the_smallest_p_there_is():
    assert signed_rank([0.1, 2, 3, 4, 5, 6]) == (0.0, 2 / 64)
    assert signed_rank([-0.1, -2, -3, -4, -5, -6]) == (0.0, 2 / 64)


def test_fewer_than_six_pairs_have_no_p():
    assert np.isnan(signed_rank([1, 2, 3, 4, 5])[1])
    assert np.isnan(signed_rank([1, 2, 3, 4, 5, 0, 0])[1])  # a difference of zero is no evidence
    assert np.isnan(signed_rank([0, 0])[1])


@pytest.mark.parametrize("n", [6, 15, 40])
def test_without_ties_p_is_scipys_exact_one(n):
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    expected = stats.wilcoxon(differences, method="exact")
    assert signed_rank(differences) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-12)


def test_with_ties_p_is_that_of_all_signs():
    """The definition: of the 2^n equally likely signs of the observed ranks, those whose smaller sum is no larger."""
    differences = np.array([1, 1, -1, 2, 2, -3, 4, 4.0])
    ranks = stats.rankdata(np.abs(differences))
    positive = np.array([sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=8)])
    statistic, p = signed_rank(differences)
    assert p == pytest.approx(2 * (positive <= statistic).mean(), abs=1e-15)


def test_many_pairs_have_the_normal_approximation_which_meets_the_exact_p():
    differences = np.random.default_rng(0).normal(0.1, 1, EXACT + 1)
    assert signed_rank(differences)[1] == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue, rel=0.02)


def test_holm_corrects_a_worked_example():
    """By hand: 4 × 0.005, 3 × 0.01, 2 × 0.03, and 0.04, which may not lie below the 0.06 before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("n", [5, 12])
def test_the_interval_is_scipys_bca(n):
    values = np.random.default_rng(n).exponential(2, n)
    expected = stats.bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert interval(values) == pytest.approx((expected.low, expected.high), rel=2e-3)


def test_intervals_follow_their_values_and_nothing_else():
    values = np.array([3.0, 1, 4, 1, 5, 9, 2, 6])
    low, high = interval(values)
    assert low < values.mean() < high
    assert interval(10 * values + 100) == pytest.approx((10 * low + 100, 10 * high + 100))
    assert interval(values, level=0.5)[1] < high
    assert np.isnan(interval([1.0, 2, 3, 4])).all()
    assert np.isnan(interval([1.0, 2, 3, 4, np.inf])).all()
    assert interval([0.1] * 5) == (0.1, 0.1)


@pytest.mark.slow
def test_the_interval_holds_the_mean_of_normal_data_nearly_as_often_as_it_says():
    for n, least, most in ((10, 0.88, 0.94), (30, 0.92, 0.965)):
        studies = np.random.default_rng(n).normal(0, 1, (2000, n))
        ends = np.array([bootstrap_interval.__wrapped__(tuple(study), resamples=1999) for study in studies])
        assert least < ((ends[:, 0] < 0) & (ends[:, 1] > 0)).mean() < most


def numbers(n, better):
    random = np.random.default_rng(1)
    truth = {f"s{i}": float(v) for i, v in enumerate(random.normal(30, 2, n))}
    psnr = {"tricubic": truth, **{m: {s: v + gain + random.normal(0, 0.1) for s, v in truth.items()} for m, gain in better.items()}}
    return {"image": {"psnr": psnr}, "mask": {"psnr": psnr, "ssim": psnr}}


def test_a_family_is_every_method_in_one_metric_and_region():
    tests, notes = paired_tests(numbers(9, {"a": 1.0, "b": 2.0}), "tricubic")
    assert not notes
    smallest = 2 / 2**9
    assert {(t.region, t.p, t.p_holm) for t in tests} == {("image", smallest, 2 * smallest), ("mask", smallest, 2 * smallest)}
    assert next(t for t in tests if t.method == "b").median_difference == pytest.approx(2, abs=0.1)


def test_pairs_are_subjects_that_both_have():
    found = numbers(8, {"a": 1.0})
    del found["image"]["psnr"]["a"]["s3"]
    found["image"]["psnr"]["tricubic"]["s4"] = float("nan")
    assert paired_tests(found, "tricubic")[0][0].n == 6


def test_few_subjects_get_a_sentence_in_place_of_p():
    tests, notes = paired_tests(numbers(4, {"a": 1.0}), "tricubic")
    assert all(np.isnan(t.p) and np.isnan(t.p_holm) and np.isfinite(t.median_difference) for t in tests)
    assert "0.125" in notes[0]


@pytest.mark.parametrize("n, said", [(6, True), (7, False)])
def test_a_family_too_large_for_its_subjects_gets_a_sentence(n, said):
    """Two methods: 2 × 2 / 2^6 is 0.0625, of 7 subjects half of that."""
    notes = paired_tests(numbers(n, {"a": 1.0, "b": 2.0}), "tricubic")[1]
    assert [note[:4] for note in notes] == (["imag", "mask"] if said else [])
    assert all("2 methods on 6 subjects" in note and "0.062" in note and "7 subjects" in note for note in notes)
