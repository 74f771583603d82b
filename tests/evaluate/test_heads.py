"""Heads enter a benchmark; label maps, masks and what was made of heads do not."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxsr.evaluate.grids import EvaluationError
from jaxsr.evaluate.heads import NoHeads, find_heads, masks_of, people_note
from jaxsr.evaluate.protocol import Protocol
from jaxsr.volume.io import Volume, VolumeError, write_volume

PROTOCOL = Protocol.model_validate({"name": "small", "acquisition": {"voxel_size": [2.0, 2.0, 2.0]}})
SHAPE = (24, 26, 22)


def write(path, data):
    write_volume(path, Volume(np.asarray(data, np.float32), np.eye(4)))
    return path


def inside(radius):
    return sum(np.linspace(-1.2, 1.2, n).reshape([-1 if a == i else 1 for i in range(3)]) ** 2 for a, n in enumerate(SHAPE)) < radius**2


def image(seed=0, most=1000):
    return np.where(inside(1.0), np.random.default_rng(seed).integers(1, most, SHAPE), 0)


def labels(step):
    """Blocks of 3 voxels of one number each."""
    blocks = np.arange(8 * 9 * 8).reshape(8, 9, 8) * step
    return blocks.repeat(3, 0).repeat(3, 1).repeat(3, 2)[: SHAPE[0], : SHAPE[1], : SHAPE[2]]


@pytest.mark.parametrize(
    "data, why",
    [
        (image(), None),
        (image(most=256), None),  # whole numbers of 8 bits
        (image() / 7.0 - 3, None),
        (inside(0.3), "2 distinct values"),  # a lesion
        (labels(1) % 50, "50 distinct values"),
        (labels(1), "label map: whole numbers"),  # more structures than any threshold of distinct values should take
        (labels(20), "label map: whole numbers"),
    ],
)
def test_images_enter_and_label_maps_do_not(tmp_path, data, why):
    write(tmp_path / "a.nii.gz", data)
    heads = find_heads(tmp_path, PROTOCOL)
    assert set(heads.entered) == (set() if why else {"a"})
    assert why is None or why in heads.left_out["a"]


def test_what_jaxsr_made_is_no_head_but_generated_heads_are(tmp_path):
    write(tmp_path / "scan_sr.nii.gz", image())
    (tmp_path / "scan_sr.json").write_text(json.dumps({"JaxSR": {"Version": "0"}}))
    write(tmp_path / "other.nii.gz", image(1))
    (tmp_path / "other.json").write_text(json.dumps({"EchoTime": 0.1}))
    for place in ("high", "reference", "bias"):
        write(tmp_path / "made" / place / "sub-0000.nii.gz", image(2))
    (tmp_path / "made" / "generated.json").write_text("{}")
    heads = find_heads(tmp_path, PROTOCOL)
    assert set(heads.entered) == {"other", "made/high/sub-0000"}
    assert "jaxsr made it" in heads.left_out["scan_sr"]
    assert "a map (bias)" in heads.left_out["made/bias/sub-0000"]


def test_a_file_of_several_volumes_is_none(tmp_path):
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.stack([image(0), image(1)], -1).astype(np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    assert "24 × 26 × 22 × 2 is not one volume" in find_heads(tmp_path, PROTOCOL).left_out["a"]


def test_a_list_names_heads_wherever_they_lie_and_masks_go_by_their_names(tmp_path):
    first, second = write(tmp_path / "x" / "a.nii.gz", image()), write(tmp_path / "y" / "b.nii.gz", image(1))
    write(tmp_path / "x" / "unlisted.nii.gz", image(2))
    (tmp_path / "lists").mkdir()
    named = tmp_path / "lists" / "heads.txt"
    named.write_text(f"# two of three, one twice\n../x/a.nii.gz\n{second}\n{second}\nmissing.nii.gz\n")
    heads = find_heads(named, PROTOCOL)
    assert [path.resolve() for path in heads.entered.values()] == [first.resolve(), second.resolve()]
    assert set(heads.entered) == {"a", "b"}
    assert "no such file" in heads.left_out["missing"]
    write(tmp_path / "masks" / "a_mask.nii.gz", inside(1))
    mask = tmp_path / "masks" / "a_mask.nii.gz"
    assert masks_of(heads, tmp_path / "masks") == {heads.entered["a"]: mask}
    with pytest.raises(EvaluationError, match="folder of masks"):
        masks_of(heads, mask)


def test_one_mask_is_not_of_two_heads_of_a_list(tmp_path):
    for contrast in ("T1w", "T2w"):
        write(tmp_path / f"sub-1_{contrast}.nii.gz", image())
    (tmp_path / "heads.txt").write_text("sub-1_T1w.nii.gz\nsub-1_T2w.nii.gz\n")
    write(tmp_path / "masks" / "sub-1_mask.nii.gz", inside(1))
    heads = find_heads(tmp_path / "heads.txt", PROTOCOL)
    assert len(heads.entered) == 2
    assert masks_of(heads, tmp_path / "masks") == {}


def test_an_image_is_no_mask_of_a_head_that_enters(tmp_path):
    at = write(tmp_path / "heads" / "a.nii.gz", image())
    write(tmp_path / "heads" / "b.nii.gz", inside(1))  # does not enter, so that its mask is not looked at
    heads = find_heads(tmp_path / "heads", PROTOCOL)
    write(tmp_path / "masks" / "a_mask.nii.gz", inside(1))
    write(tmp_path / "masks" / "b_mask.nii.gz", image(1))
    assert heads.entered["a"] in masks_of(heads, tmp_path / "masks")
    write(tmp_path / "masks" / "a_mask.nii.gz", image(1))
    with pytest.raises(EvaluationError, match=r"a_mask\.nii\.gz has more than two values"):
        masks_of(heads, tmp_path / "masks")
    with pytest.raises(EvaluationError, match="the reference itself"):
        masks_of(find_heads(at, PROTOCOL), at)


def test_a_single_head_that_cannot_be_read_is_bad_input_not_nothing_to_do(tmp_path):
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "a.nii").write_text("no volume")
    with pytest.raises(VolumeError, match=r"a\.nii: not a volume"):
        find_heads(tmp_path / "heads" / "a.nii", PROTOCOL)
    assert "not a volume" in find_heads(tmp_path / "heads", PROTOCOL).left_out["a"]


def test_several_heads_of_one_person_are_told(tmp_path):
    for name in ("p1/T1.nii.gz", "p1/T2.nii.gz", "p2/T1.nii.gz"):
        write(tmp_path / name, image())
    heads = find_heads(tmp_path, PROTOCOL)
    assert "3 images are of 2 people" in people_note(heads, list(heads.entered))
    assert people_note(heads, ["p1/T1", "p2/T1"]) is None
    assert people_note(find_heads(tmp_path / "p1" / "T1.nii.gz", PROTOCOL), ["T1"]) is None


def test_nothing_there_is_nothing_to_do_and_no_such_path_is_a_mistake(tmp_path):
    with pytest.raises(NoHeads, match="no heads there"):
        find_heads(tmp_path, PROTOCOL)
    (tmp_path / "empty.txt").write_text("# nobody\n")
    with pytest.raises(NoHeads, match="no heads there"):
        find_heads(tmp_path / "empty.txt", PROTOCOL)
    with pytest.raises(EvaluationError, match="does not exist") as raised:
        find_heads(Path(tmp_path / "missing"), PROTOCOL)
    assert not isinstance(raised.value, NoHeads)
