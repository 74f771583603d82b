"""Laws of generated heads: the files are what the embedded set and label maps render, and `prepare` takes them for who they are.

What is rendered is noise here: heads are in tests/data/test_anatomy.py and test_label_heads.py, and compile for long.
"""

from types import SimpleNamespace

import jax
import nibabel as nib
import numpy as np
import pytest

from jaxsr.data.anatomy import Head
from jaxsr.data.gradients import gradient_map
from jaxsr.data.layouts.base import Wanted
from jaxsr.data.layouts.folder import Folder
from jaxsr.data.people import person_of
from jaxsr.data.subjects import AnatomySubjects, stable_hash
from jaxsr.data.synthetic import LabelSubjects, find_label_maps
from jaxsr.generate import SCALE, generate
from jaxsr.physics.gradients import log_jacobian
from jaxsr.physics.protocol import named_acquisition
from jaxsr.upscale.guide_maps import read_guides
from jaxsr.upscale.guides import Guides
from jaxsr.volume.errors import VolumeError
from jaxsr.volume.io import Volume, read_volume

MM = 8.0
MAPS = ("reference", "bias", "gradient", "labels", "mask")
ROLES = {"high", *MAPS}


def noise(key, shape, maps):
    """All that a head can come with, of this key and grid."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    image, reference, bias = rng.random((3, *shape), np.float32)
    labels, mask = rng.integers(0, 6, shape, np.uint8), rng.random(shape) > 0.2
    drawn = {"reference": reference, "bias": bias - 0.5, "gradient": rng.random((*shape, 3), np.float32) * 4 - 2, "mask": mask}
    return Head(image, labels, **{name: x for name, x in drawn.items() if name in maps})


@pytest.fixture(scope="module", autouse=True)
def renderers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxsr.data.subjects.render", lambda key, shape, mm, contrast, *, maps: noise(key, shape, maps))
        patch.setattr(
            "jaxsr.data.synthetic.render_labels", lambda key, label_map, shape, mm, contrast, variation, maps: noise(key, shape, maps)
        )
        yield


def label_map(path):
    """A ball of white matter in grey matter, 8 mm voxels; what is around it is made up when it is read."""
    r = np.linalg.norm(np.indices((24, 30, 26)) - np.reshape((11.5, 14.5, 12.5), (3, 1, 1, 1)), axis=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.where(r < 6, 2, np.where(r < 8, 3, 0)).astype(np.int32), np.diag([MM, MM, MM, 1.0])), path)


def files(folder):
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.nii.gz"))}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded") / "heads"
    return out, generate(out, 2, voxel_size=MM, contrast="T1w", maps=MAPS, seed=5)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Three label maps of two people, and six heads of them."""
    maps = tmp_path_factory.mktemp("maps")
    for name in ("sub-a/seg.nii.gz", "sub-b/one.nii.gz", "sub-b/two.nii.gz"):
        label_map(maps / name)
    out = tmp_path_factory.mktemp("labelled") / "heads"
    return out, generate(out, 6, labels=maps, voxel_size=MM, contrast="T1w", maps=MAPS, seed=5), maps


def subjects(kind, labelled, seed, maps=MAPS):
    how = {"voxel_size": MM, "acquisition": named_acquisition("1.5T"), "seed": seed, "contrast": "T1w", "maps": maps, "carries": ("bias",)}
    if kind == "embedded":
        return AnatomySubjects(2, "train", **how)
    return LabelSubjects(find_label_maps(labelled[2])[0], labelled[2], 6, "train", **how)


@pytest.mark.parametrize("kind", ["embedded", "labelled"])
def test_the_files_of_a_head_lie_on_one_grid_and_are_what_was_rendered(kind, embedded, labelled):
    """`high` carries the field of `bias`, b, which multiplies: both are of one scale, 0…1000 without it."""
    written = (embedded if kind == "embedded" else labelled)[1]
    people = subjects(kind, labelled, stable_hash("generate/5"))
    index = len(written) - 1
    head, path = people.head(index), written[index]
    found = {role: path.parents[1] / role / path.name for role in ROLES}
    assert {nib.load(p).shape[:3] for p in found.values()} == {people.grid.shape}
    for p in found.values():
        np.testing.assert_allclose(nib.load(p).affine, people.grid.affine, atol=1e-4)
    data = {role: read_volume(p).data for role, p in found.items() if role != "gradient"}
    field = np.exp(np.asarray(head.bias))
    np.testing.assert_allclose(data["bias"], field, rtol=1e-4)
    np.testing.assert_allclose(data["high"], SCALE * np.asarray(head.image) * field, atol=1e-4 * SCALE)
    np.testing.assert_allclose(data["reference"], SCALE * np.asarray(head.reference), atol=1e-4 * SCALE)
    np.testing.assert_array_equal(data["labels"], np.asarray(head.labels))
    np.testing.assert_array_equal(data["mask"] > 0.5, np.asarray(head.mask))
    np.testing.assert_allclose(gradient_map(people.grid, found["gradient"]), np.asarray(head.gradient), atol=1e-4)
    assert np.abs(head.gradient).max() > 0.1
    # No head is one that training with the same seed sees.
    assert (np.asarray(subjects(kind, labelled, 5).head(index).labels) != data["labels"]).mean() > 0.01


def test_training_and_upscaling_derive_one_jacobian_of_a_head(embedded, labelled):
    """And a model that the displacement guides gets the one that it is of."""
    people = subjects("embedded", labelled, stable_hash("generate/5"), ("jacobian",))
    pair, guides = people.load(1), Guides(gradient=embedded[0] / "gradient" / embedded[1][1].name)
    assert pair.maps().keys() == {"high", "low", "jacobian"}
    scan = Volume(pair.low, pair.grid.affine)
    models = [SimpleNamespace(method=SimpleNamespace(maps=("bias", name))) for name in ("gradient", "jacobian")]
    displacement, jacobian = (read_guides(model, guides, pair.grid, scan) for model in models)
    assert (displacement.keys(), jacobian.keys()) == ({"gradient"}, {"jacobian"})
    np.testing.assert_array_equal(jacobian["jacobian"], log_jacobian(displacement["gradient"], pair.grid.voxel_size))
    np.testing.assert_allclose(jacobian["jacobian"], pair.jacobian, atol=1e-4)
    assert np.ptp(pair.jacobian) > 0.1


def test_a_second_call_leaves_files_alone_and_adds_only_what_is_missing(embedded):
    out, written = embedded
    before = {name: path.stat().st_mtime_ns for name, path in files(out).items()}
    whole = read_volume(written[1]).data
    assert generate(out, 2, voxel_size=MM, contrast="T1w", maps=MAPS, seed=5) == written
    assert {name: path.stat().st_mtime_ns for name, path in files(out).items()} == before
    written[1].unlink()  # as where the process was killed: `high` comes last
    generate(out, 2, voxel_size=MM, contrast="T1w", maps=MAPS, seed=5)
    np.testing.assert_array_equal(read_volume(written[1]).data, whole)
    assert {name for name, path in files(out).items() if path.stat().st_mtime_ns == before[name]} == {
        f"{role}/{written[0].name}" for role in ROLES
    }


@pytest.mark.parametrize("other", [{"seed": 6}, {"voxel_size": 7.0}, {"contrast": "T2w"}, {"maps": ("bias",)}])
def test_heads_made_in_another_way_are_not_mixed_in(embedded, other):
    out, _ = embedded
    before = files(out)
    with pytest.raises(VolumeError, match=r"generated in another way .*: choose another folder"):
        generate(out, 3, **{"voxel_size": MM, "contrast": "T1w", "maps": MAPS, "seed": 5, **other})
    assert files(out) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(VolumeError, match="holds no generated heads: choose a new folder"):
        generate(tmp_path, 1, voxel_size=MM)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_heads_of_one_persons_label_maps_are_one_person_and_all_have_their_maps(labelled):
    out, written, root = labelled
    found = Folder().find(out, Wanted())
    assert len(found.scans) == len(written) == 6
    assert all(set(scan.files) == ROLES for scan in found.scans)
    rendered = subjects("labelled", labelled, stable_hash("generate/5")).paths
    assert len(set(rendered)) == 3
    assert [scan.person for scan in sorted(found.scans, key=lambda scan: scan.id[-4:])] == [
        person_of(path.relative_to(root)) for path in rendered
    ]
    assert {scan.person for scan in found.scans} == {"sub-a", "sub-b"}


def test_held_out_heads_are_none_that_a_seed_draws_otherwise_whatever_the_voxels(tmp_path, monkeypatch):
    """What was trained on generated heads has not seen those of a protocol, nor finer ones of their anatomy, which no checksum tells."""
    keys = []
    monkeypatch.setattr(
        "jaxsr.data.subjects.render",
        lambda key, shape, mm, contrast, maps: keys.append(jax.random.key_data(key).tolist()) or noise(key, shape, maps),
    )
    for held_out in (False, True):
        for voxel_size in (MM, 2 * MM):
            for seed in (0, 1):
                generate(tmp_path / f"{held_out}-{voxel_size}-{seed}", 2, voxel_size=voxel_size, seed=seed, held_out=held_out)
    trained, held = ({tuple(key) for key in part} for part in (keys[:8], keys[8:]))
    assert (len(trained), len(held), trained & held) == (4, 4, set())
