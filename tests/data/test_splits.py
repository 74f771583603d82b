"""Laws of splits: by person, from names and a seed alone."""

import random

import pytest

from jaxsr.data.splits import SPLITS, assign_splits, read_splits, settle
from jaxsr.data.subjects import split_by_subject
from jaxsr.volume.errors import VolumeError

PEOPLE = [f"sub-{i:03d}" for i in range(200)]


def counts(splits):
    return [list(splits.values()).count(split) for split in SPLITS]


@pytest.mark.parametrize("stable", [True, False])
def test_a_split_is_a_function_of_names_and_seed(stable):
    shuffled = [*PEOPLE, *PEOPLE[:50]]
    random.Random(0).shuffle(shuffled)
    splits = assign_splits(PEOPLE, 0, stable=stable)
    assert assign_splits(shuffled, 0, stable=stable) == splits
    assert list(splits) == sorted(PEOPLE)
    assert assign_splits(PEOPLE, 1, stable=stable) != splits


def test_exact_counts_are_the_shares_rounded():
    assert counts(assign_splits(PEOPLE, 0, stable=False)) == [160, 20, 20]
    assert counts(assign_splits(PEOPLE, 0, (2, 1, 1), stable=False)) == [100, 50, 50]
    assert counts(assign_splits(PEOPLE[:3], 0, stable=False)) == [3, 0, 0]


def test_a_set_that_grows_moves_nobody_by_default_and_somebody_where_counts_are_exact():
    grown = assign_splits(PEOPLE)
    for size in range(0, 200, 7):
        assert assign_splits(PEOPLE[:size]).items() <= grown.items()
    exact = assign_splits(PEOPLE, stable=False)
    assert any(not assign_splits(PEOPLE[:size], stable=False).items() <= exact.items() for size in range(100, 200))


def test_shares_of_a_large_set_are_kept_without_exact_counts():
    train, validation, test = counts(assign_splits([f"p{i}" for i in range(20000)], 3))
    assert abs(validation - 2000) < 5 * 42  # five deviations of a binomial count, √(n p (1 − p))
    assert abs(test - 2000) < 5 * 42
    assert train + validation + test == 20000


@pytest.mark.parametrize("stable", [True, False])
def test_who_is_settled_stays_and_the_rest_fills_up(stable):
    given = {"sub-000": "test", "sub-001": "validation", "somebody else": "train"}
    splits = assign_splits(PEOPLE, 0, stable=stable, given=given)
    assert splits["sub-000"] == "test"
    assert splits["sub-001"] == "validation"
    assert "somebody else" not in splits
    if not stable:
        assert counts(splits) == [160, 20, 20]


def test_both_forms_of_a_letter_with_an_accent_are_one_name():
    """macOS hands out names decomposed."""
    for composed, decomposed in (("Jos\u00e9", "Jose\u0301"), ("Bj\u00f6rn", "Bjo\u0308rn")):
        for seed in range(20):
            assert assign_splits([composed], seed)[composed] == assign_splits([decomposed], seed)[decomposed]


@pytest.mark.parametrize("shares", [(0, 0, 0), (1, -1, 1), (float("inf"), 1, 1), (float("nan"), 1, 1)])
def test_shares_that_split_nothing_are_refused(shares):
    with pytest.raises(VolumeError, match="split nothing"):
        assign_splits(PEOPLE, 0, shares)


def test_a_share_of_nothing_takes_nobody():
    for stable in (True, False):
        assert counts(assign_splits(PEOPLE, 0, (1, 0, 0), stable=stable)) == [200, 0, 0]
        assert counts(assign_splits(PEOPLE, 0, (0, 0, 3), stable=stable)) == [0, 0, 200]


def test_splits_of_volumes_are_those_of_their_people(tmp_path):
    """Whatever order the files are in, and whatever else a person has."""
    paths = [tmp_path / f"p{i:02d}-{contrast}.nii" for i in range(30) for contrast in ("T1", "T2", "FLAIR")]
    exact = assign_splits([f"p{i:02d}" for i in range(30)], 5, stable=False)
    for split in SPLITS:
        chosen = split_by_subject(paths[::-1], tmp_path, split, 5)
        assert {path.name.split("-")[0] for path in chosen} == {person for person, of in exact.items() if of == split}
        assert len(chosen) == 3 * counts(exact)[SPLITS.index(split)]


def test_a_table_settles_splits(tmp_path):
    table = tmp_path / "splits.tsv"
    table.write_text("participant\tage\tsplit\nsub-01\t30\ttrain\n\nsub-02\t31\tval\nsub-03\t32\tTest\n")
    assert read_splits(table) == {"sub-01": "train", "sub-02": "validation", "sub-03": "test"}
    (tmp_path / "splits.csv").write_text("\ufeffparticipant_id,split\nsub-01,training\n")
    assert read_splits(tmp_path / "splits.csv") == {"sub-01": "train"}


@pytest.mark.parametrize("text, why", [
    ("participant\tsplit\na\ttrain\na\ttest\n", "a is listed with train and with test"),
    ("participant\tsplit\na\tholdout\n", "a is in split holdout: the splits are train, validation, test"),
    ("name\tsplit\na\ttrain\n", "there is no column participant or"),
    ("participant\tsplit\na\n", "every line needs both columns"),
    ("", "the table is empty"),
    ("\udcff", "not a table in UTF-8"),
])  # fmt: skip
def test_a_table_that_settles_nothing_is_refused(tmp_path, text, why):
    table = tmp_path / "splits.tsv"
    table.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(VolumeError, match=why):
        read_splits(table)
    with pytest.raises(VolumeError, match="cannot be read"):
        read_splits(tmp_path / "absent.tsv")


FAMILIES = {"sub-00": "family-a", "sub-01": "family-a", "sub-02": "sub-02"}


def test_a_split_of_one_member_is_that_of_the_family():
    splits, unmatched = settle({"sub-00": "test", "sub-02": "validation"}, FAMILIES)
    assert splits == {"family-a": "test", "sub-02": "validation"}
    assert not unmatched
    assert splits.items() <= assign_splits(FAMILIES.values(), given=splits).items()
    assert settle({"sub-00": "test", "sub-01": "test"}, FAMILIES)[0] == settle({"family-a": "test"}, FAMILIES)[0] == {"family-a": "test"}


def test_names_of_a_table_that_are_nobodys_are_told():
    assert settle({"sub-2": "test", "sub-02": "train", "Sub-02": "test"}, FAMILIES) == ({"sub-02": "train"}, ["Sub-02", "sub-2"])


@pytest.mark.parametrize("other", ["sub-01", "family-a"])
def test_a_family_in_two_splits_is_refused_with_both_members_and_splits(other):
    with pytest.raises(VolumeError) as refused:
        settle({"sub-00": "test", other: "train"}, FAMILIES)
    assert all(word in str(refused.value) for word in ("sub-00", "test", other, "train", "family-a"))
