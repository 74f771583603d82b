"""Files find their partners by name, and say so when they do not."""

import json
from pathlib import Path

import pytest

from jaxsr.evaluate.files import pair_files, source_of, stem, subjects_of, volume_files


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(pairing):
    return {subject: (r.name, p.name) for subject, (r, p) in pairing.matched.items()}


@pytest.mark.parametrize(
    "reference, output, subject",
    [
        ("a.nii.gz", "a.nii", "a"),
        ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_desc-sr_T1w.nii.gz", "sub-01"),
        ("sub-01_ses-2_acq-hi_T1w.nii.gz", "sub-01_ses-2_acq-lo_res-07mm_T1w.nii.gz", "sub-01_ses-2"),
        ("head01.nii.gz", "head01_sr.nii.gz", "head01"),
        ("s1/t1.nii.gz", "s1/t1.nii.gz", "t1"),
    ],
)
def test_names_that_mean_the_same_image_match(tmp_path, reference, output, subject):
    pairing = pair_files(folder(tmp_path / "r", reference), folder(tmp_path / "o", output))
    assert names(pairing) == {subject: (Path(reference).name, Path(output).name)}


def test_one_number_is_not_the_beginning_of_another(tmp_path):
    pairing = pair_files(folder(tmp_path / "r", "head1.nii.gz"), folder(tmp_path / "o", "head10.nii.gz"))
    assert not pairing.matched


def test_two_files_are_a_pair_whatever_their_names(tmp_path):
    folder(tmp_path, "x.nii.gz", "y.mgz")
    assert names(pair_files(tmp_path / "x.nii.gz", tmp_path / "y.mgz")) == {"x": ("x.nii.gz", "y.mgz")}


def test_what_is_missing_or_too_many_is_named(tmp_path):
    pairing = pair_files(folder(tmp_path / "r", "a.nii", "b.nii"), folder(tmp_path / "o", "b.nii", "c.nii"))
    assert ([p.name for p in pairing.missing], [p.name for p in pairing.extra]) == (["a.nii"], ["c.nii"])


def test_a_choice_is_not_made_silently(tmp_path):
    pairing = pair_files(folder(tmp_path / "r", "sub-1_T1w.nii"), folder(tmp_path / "o", "sub-1_desc-a_T1w.nii", "sub-1_desc-b_T1w.nii"))
    assert not pairing.matched
    assert len(pairing.extra) == 2


def test_two_images_of_one_subject_keep_their_names(tmp_path):
    both = ("sub-1_T1w.nii", "sub-1_T2w.nii")
    assert set(names(pair_files(folder(tmp_path / "r", *both), folder(tmp_path / "o", *both)))) == {"sub-1_T1w", "sub-1_T2w"}


def test_masks_are_no_outputs_but_find_their_reference(tmp_path):
    root = folder(tmp_path / "m", "sub-1_desc-brain_mask.nii")
    references = folder(tmp_path / "r", "sub-1_T1w.nii")
    assert not pair_files(references, root).matched
    assert names(pair_files(references, root, masks=True)) == {"sub-1": ("sub-1_T1w.nii", "sub-1_desc-brain_mask.nii")}


def test_sessions_of_a_derivative_find_their_references_and_maps_are_no_outputs(tmp_path):
    at = [f"sub-{s}/ses-{v}/anat/sub-{s}_ses-{v}" for s in (1, 2) for v in ("a", "b")]
    references = folder(tmp_path / "raw", *[f"{where}_{suffix}.nii.gz" for where in at for suffix in ("T1w", "T2w")])
    maps = ("srstd", "srconsistency", "srsample0", "std", "consistency")
    outputs = [f"{where}_res-1mm_desc-{desc}_T1w.nii.gz" for where in at for desc in ("sr", *maps)]
    pairing = pair_files(references, folder(tmp_path / "derivative", *outputs))
    assert not pairing.extra
    assert {p.name for p in pairing.missing} == {f"{Path(where).name}_T2w.nii.gz" for where in at}
    assert names(pairing) == {
        Path(where).name: (f"{Path(where).name}_T1w.nii.gz", f"{Path(where).name}_res-1mm_desc-sr_T1w.nii.gz") for where in at
    }


def test_a_sidecar_tells_a_map_where_the_name_does_not(tmp_path):
    root = folder(tmp_path / "o", "head_sr.nii.gz", "head_sr_std.nii.gz")
    references = folder(tmp_path / "r", "head.nii.gz")
    assert not pair_files(references, root).matched  # which of the two is not guessed
    (root / "head_sr_std.json").write_text(json.dumps({"JaxSR": {"Map": "std"}}))
    assert names(pair_files(references, root)) == {"head": ("head.nii.gz", "head_sr.nii.gz")}


def test_a_stem_has_no_format():
    assert [stem(Path(p)) for p in ("a.nii.gz", "b.c.MGZ", "d.nii")] == ["a", "b.c", "d"]


def test_a_bids_uri_leads_to_the_input_through_the_derivatives_description(tmp_path):
    raw = folder(tmp_path / "raw", "sub-1/anat/sub-1_T1w.nii.gz")
    out = folder(tmp_path / "derivatives" / "sr", "sub-1/anat/sub-1_desc-sr_T1w.nii.gz")
    output = out / "sub-1" / "anat" / "sub-1_desc-sr_T1w.nii.gz"
    (output.parent / "sub-1_desc-sr_T1w.json").write_text(json.dumps({"Sources": ["bids:raw:sub-1/anat/sub-1_T1w.nii.gz"]}))
    assert source_of([output])[0] is None
    (out / "dataset_description.json").write_text(json.dumps({"DatasetLinks": {"raw": "../../raw"}}))
    assert source_of([output])[0].samefile(raw / "sub-1" / "anat" / "sub-1_T1w.nii.gz")


@pytest.mark.parametrize("mask", ["sub-1_desc-brain_mask.nii.gz", "sub-1_T1w_mask_native.nii.gz", "sub-1_desc-MASK_T1w.nii.gz"])
def test_a_mask_is_taken_where_an_image_lies_beside_it(tmp_path, mask):
    derivative = folder(tmp_path / "d", "sub-1_desc-preproc_T1w.nii.gz", mask)
    references = folder(tmp_path / "r", "sub-1_T1w.nii.gz")
    assert names(pair_files(references, derivative, masks=True)) == {"sub-1": ("sub-1_T1w.nii.gz", mask)}


def test_no_reference_is_its_own_mask(tmp_path):
    heads = folder(tmp_path / "h", "sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz")
    assert not pair_files(heads, heads, masks=True).matched
    folder(heads, "sub-1_desc-brain_mask.nii.gz")
    assert names(pair_files(heads, heads, masks=True)) == {"sub-1": ("sub-1_T1w.nii.gz", "sub-1_desc-brain_mask.nii.gz")}


def test_subjects_that_differ_by_format_alone_are_called_by_their_path_from_the_folder(tmp_path):
    root = folder(tmp_path / "h", "a/head.nii.gz", "a/head.mgz")
    assert set(subjects_of(volume_files(root), root).values()) == {"a/head.nii.gz", "a/head.mgz"}
