"""What `jaxsr segment` writes, by the command line, from models of random weights; and laws of what it computes."""

import gc
import json
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_variables
from jaxsr.cli import app
from jaxsr.cli.status import run
from jaxsr.experiment import Experiment, load_experiment
from jaxsr.methods.anatomy import AnatomyConfig
from jaxsr.methods.base import Request
from jaxsr.methods.condition import Batch
from jaxsr.runtime.mesh import make_mesh
from jaxsr.train.build import build_method
from jaxsr.upscale.engine import Engine, tissues_of
from jaxsr.upscale.export import export_model
from jaxsr.upscale.inputs import Job
from jaxsr.upscale.model import Model
from jaxsr.upscale.segment import BYTES_A_VOXEL, COLOURS, Settings, draw_labels, likeliest, segment_file
from jaxsr.volume.io import Volume, VolumeError, read_volume, write_volume
from jaxsr.volume.slices import AXES, take_slices
from jaxsr.weights.file import digest

EXTRACTOR = "network: {width: 4, multipliers: [1, 2], groups: 2}"
MODELS = {
    "anatomy": f"method: {{kind: anatomy, {EXTRACTOR}}}",
    "spcdd": f"method: {{kind: spcdd, plain: {{width: 4}}, intensity: null, prior: {{train: true, {EXTRACTOR}}}}}",
    "without": "method: {kind: spcdd, plain: {width: 4}, intensity: null, prior: null}",
    "autoencoder": "method: {kind: autoencoder, network: {width: 8, multipliers: [1, 2], blocks: 1, groups: 4}}",
}
SIZE = (3.0, 1.5, 2.0)
TISSUES = ("background", "csf", "grey", "white")


def cli(*words):
    return run(lambda: app([str(word) for word in words], standalone_mode=False))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Models of random weights, and a scan stored as LPS, oblique, of integers, its forms of two codes."""
    folder = tmp_path_factory.mktemp("segment")
    image = jax.ShapeDtypeStruct((1, 16, 16, 1), np.float32)
    for name, text in MODELS.items():
        (folder / f"{name}.yaml").write_text(text + "\ndata: {voxel_size: 2.0, crop: 16, maps: [labels]}\n")
        experiment = load_experiment(folder / f"{name}.yaml")
        method = build_method(experiment)
        variables = {**synthetic_variables(method, Batch(image, image), 29), "frozen": {}}
        # The last layer's would make one tissue likelier than the others everywhere.
        variables = jax.tree_util.tree_map_with_path(lambda path, x: 0 * x if "bias" in jax.tree_util.keystr(path) else x, variables)
        export_model(Model(name, 7, experiment, method, variables, digest(variables["params"])), folder / f"{name}.safetensors")
    data = np.random.default_rng(0).normal(100, 30, (18, 22, 20)).clip(0)
    data[:4] = 0
    affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.05, -0.1) @ np.diag([-SIZE[0], -SIZE[1], SIZE[2]]), [9, -4, 2])
    scan = nib.Nifti1Image(data.astype(np.int16), affine)
    scan.set_sform(affine, 1)
    scan.set_qform(affine, 2)
    nib.save(scan, folder / "scan.nii.gz")
    return folder


def segment(work, out, *words, scan="scan.nii.gz", model="anatomy"):
    return cli("segment", "-i", work / scan, "-o", out, "-m", work / f"{model}.safetensors", *words)


@pytest.fixture(scope="module")
def segmented(work, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    assert segment(work, folder / "seg.nii.gz", "--masks") == 0
    return folder


def masks_in(folder):
    """`[K, X, Y, Z]`, the first what the others leave."""
    others = np.stack([read_volume(folder / f"seg_mask-{name}.nii.gz", constant="allow").data for name in TISSUES[1:]])
    return np.concatenate([1 - others.sum(0, keepdims=True), others])


# ------------------------------------------------------------------------------------------------ what is computed


class Marks:
    """Sees in every pixel of a slice what the pixel and the slice's mean say, so that each axis sees another thing."""

    multiple = 8
    default_request = Request(steps=1)
    most_steps = 1
    tissues = ("none", "one", "two")

    def segment(self, variables, condition):
        mean = condition.low.max((1, 2, 3), keepdims=True)  # which padding does not change
        return jax.nn.softmax(jnp.concatenate([condition.low, mean - condition.low, jnp.sin(9 * condition.low)], -1))


def test_what_is_seen_along_each_axis_is_averaged_where_it_is():
    low = np.random.default_rng(1).normal(size=(9, 21, 14)).astype(np.float32)
    seen = []
    found = Engine(Marks(), {}, make_mesh(), batch_size=4).segment(low, tuple(AXES), seen.append)
    expected = np.zeros((3, *low.shape))
    for axis in AXES:
        slices = take_slices(low, axis)
        masks = np.asarray(Marks().segment({}, Batch(slices[..., None], slices[..., None])))
        for tissue in range(3):
            take_slices(expected[tissue], axis)[...] += masks[..., tissue] / 3
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(likeliest(found), expected.argmax(0))
    assert seen == sorted(seen)
    assert seen[-1] == sum(low.shape)


def test_a_method_that_tells_no_tissues_apart_segments_nothing(identity_method):
    assert tissues_of(identity_method) == ()
    with pytest.raises(ValueError, match="anatomy extractor"):
        Engine(identity_method, {}, make_mesh(), batch_size=4).segment(np.zeros((8, 8, 8), np.float32), ("axial",))


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("picture", [False, True])
def test_the_hosts_memory_is_enough_and_not_half_too_much(tmp_path, masks, picture):
    volume = Volume(np.random.default_rng(0).normal(100, 30, (120, 110, 100)).astype(np.float32), np.eye(4), path=tmp_path / "v.nii")
    write_volume(tmp_path / "v.nii", volume)
    method = Marks()
    engine = Engine(method, {}, make_mesh(), batch_size=8)
    model = Model("run", 1, Experiment(method=AnatomyConfig(), data={"maps": ["labels"]}), method, {}, "")
    engine.segment(volume.data, tuple(AXES))  # what compiling takes is not meant, nor what is imported and cached at first
    draw_labels(volume, np.zeros(volume.data.shape, np.uint8), dict.fromkeys(method.tissues, 1.0), volume.data > 90, "")
    usual = gc.get_threshold()
    gc.set_threshold(700, 10, 10)  # as in a program; tests look for garbage less often, and pictures leave some
    tracemalloc.start()
    try:
        segment_file(engine, model, Job(tmp_path / "v.nii", tmp_path / "o.nii"), Settings(masks=masks, picture=picture), volume=volume)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.set_threshold(*usual)
    expected = (4 * 3 + BYTES_A_VOXEL) * volume.data.size
    assert 0.65 * expected < peak < expected


def test_a_volume_that_does_not_fit_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxsr.upscale.segment.free_memory", lambda: 10_000)
    volume = Volume(np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32), np.eye(4))
    model = Model("run", 1, Experiment(method=AnatomyConfig(), data={"maps": ["labels"]}), Marks(), {}, "")
    with pytest.raises(VolumeError, match=r"v\.nii.*3 classes for 20 × 20 × 20 voxels need 0\.0 GB"):
        segment_file(None, model, Job(Path("v.nii"), tmp_path / "o.nii"), Settings(), volume=volume)


def test_there_is_a_colour_for_every_tissue_that_there_may_be():
    from jaxsr.data.anatomy.contrasts import MIXTURE

    assert len(set(COLOURS)) >= MIXTURE.shape[1] - 2  # but for air, and lesions, which count as white matter


# ------------------------------------------------------------------------------------------------ what is written


def test_labels_are_what_the_masks_are_highest_for(segmented):
    masks, labels = masks_in(segmented), read_volume(segmented / "seg.nii.gz").data
    assert min(np.bincount(labels.astype(int).ravel(), minlength=4)) > 0.01 * labels.size
    assert masks.min() > -1e-6
    ordered = np.sort(masks, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-5  # the first mask is the rest of the others here, which rounding may tip
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(masks.argmax(0)[clear], labels[clear])


def test_a_label_map_is_one_of_bytes_where_the_scan_is(work, segmented):
    """uint8, its intent says label map; the grid, orientation and codes are the scan's."""
    scan, labels = nib.load(work / "scan.nii.gz"), nib.load(segmented / "seg.nii.gz")
    assert labels.get_data_dtype() == np.uint8
    assert labels.header.get_intent()[0] == "label"
    assert labels.shape == scan.shape
    assert nib.aff2axcodes(labels.affine) == nib.aff2axcodes(scan.affine) == ("L", "P", "S")
    np.testing.assert_allclose(labels.get_sform(), scan.affine, atol=1e-5)
    np.testing.assert_allclose(labels.get_qform(), scan.affine, atol=1e-4)
    assert (int(labels.header["sform_code"]), int(labels.header["qform_code"])) == (1, 2)
    assert nib.load(segmented / "seg_mask-grey.nii.gz").get_data_dtype() == np.float32
    assert (segmented / "seg.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("axes", [((0, 1), (1, 1), (2, 1)), ((2, -1), (0, 1), (1, -1))])
def test_however_a_scan_is_stored_a_place_in_the_scanner_has_its_label(work, segmented, tmp_path, axes):
    nib.save(nib.load(work / "scan.nii.gz").as_reoriented(np.array(axes)), work / "turned.nii")
    assert segment(work, tmp_path / "seg.mgz", "--no-montage", scan="turned.nii") == 0
    turned = nib.load(tmp_path / "seg.mgz")
    assert turned.get_data_dtype() == np.uint8
    assert turned.shape == nib.load(work / "turned.nii").shape
    one, other = nib.as_closest_canonical(nib.load(segmented / "seg.nii.gz")), nib.as_closest_canonical(turned)
    np.testing.assert_allclose(other.affine, one.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(other.dataobj), np.asarray(one.dataobj))


def test_the_sidecar_says_which_number_is_which_tissue_and_what_made_it(work, segmented):
    facts = json.loads((segmented / "seg.json").read_text())
    ours = facts["JaxSR"]
    assert "Synthetic" not in facts["Description"]
    assert "not for diagnosis" in facts["Description"]
    assert facts["Sources"] == [str(Path("..", work.name, "scan.nii.gz"))]
    assert ours["Labels"] == {"0": "background", "1": "csf", "2": "grey", "3": "white"}
    labels = read_volume(segmented / "seg.nii.gz").data
    counted = {name: (labels == i).sum() * np.prod(SIZE) / 1000 for i, name in enumerate(TISSUES)}
    assert ours["Millilitres"] == pytest.approx(counted, abs=1e-3)
    assert (ours["Model"], ours["Method"], ours["Checkpoint"], ours["Axes"]) == ("anatomy", "anatomy", 7, list(AXES))
    assert len(ours["WeightsSHA256"]) == 64
    assert not {"SamplingSteps", "Eta", "Seed"} & ours.keys()
    assert any("trained on scans of 2 mm" in note for note in ours["Notes"])
    mask = json.loads((segmented / "seg_mask-grey.json").read_text())["JaxSR"]
    assert (mask["Map"], mask["Of"], mask["Tissue"], mask["WeightsSHA256"]) == ("mask-grey", "seg.nii.gz", "grey", ours["WeightsSHA256"])


def test_a_prior_sees_what_it_is_and_along_the_axes_that_are_named(work, segmented, tmp_path):
    assert segment(work, tmp_path / "seg.nii.gz", "--masks", "--axes", "axial", "--no-montage", model="spcdd") == 0
    ours = json.loads((tmp_path / "seg.json").read_text())["JaxSR"]
    assert (ours["Method"], ours["Axes"]) == ("spcdd", ["axial"])
    assert not (tmp_path / "seg.png").exists()
    assert np.abs(masks_in(tmp_path) - masks_in(segmented)).max() > 0.01


def test_what_is_done_is_skipped_and_done_again_when_asked(work, tmp_path, capsys):
    """Masks of an earlier run go, so that none is of another label map."""
    out = tmp_path / "seg.nii.gz"
    assert segment(work, out, "--masks") == 0
    before = out.stat().st_mtime_ns
    assert segment(work, out) == 0
    assert "1 done already" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == before
    assert segment(work, out, "--overwrite", model="spcdd") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seg.json", "seg.nii.gz", "seg.png"]
    assert json.loads((tmp_path / "seg.json").read_text())["JaxSR"]["Method"] == "spcdd"


@pytest.mark.parametrize("name", ["seg.json", "seg.png", "seg_mask-csf.nii.gz", "seg_mask-csf.json"])
def test_a_file_of_somebody_else_s_is_not_replaced(work, tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"mine")
    assert segment(work, tmp_path / "seg.nii.gz", "--masks", "--overwrite") == 2
    assert "was not written by jaxsr" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"mine"


@pytest.mark.parametrize("model, said", [("without", "of kind spcdd without a prior"), ("autoencoder", "of kind autoencoder")])
def test_a_model_that_tells_no_tissues_apart_is_refused_with_what_does(work, tmp_path, capsys, model, said):
    assert segment(work, tmp_path / "seg.nii.gz", model=model) == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert said in told
    assert "kind anatomy, or of kind spcdd with a prior" in told
    assert not list(tmp_path.iterdir())


def test_no_model_is_its_own_status(work, tmp_path, capsys):
    assert cli("segment", "-i", work / "scan.nii.gz", "-o", tmp_path / "seg.nii.gz") == 4
    assert "jaxsr train configs/anatomy.yaml" in capsys.readouterr().err
    assert cli("segment", "-i", work / "scan.nii.gz", "-o", tmp_path / "seg.nii.gz", "-m", tmp_path) == 4


def test_of_a_file_of_several_volumes_one_is_named(work, segmented, tmp_path, capsys):
    scan = nib.load(work / "scan.nii.gz")
    data = np.asarray(scan.dataobj)
    nib.save(nib.Nifti1Image(np.stack([data[::-1], data], -1), scan.affine), work / "both.nii")
    assert segment(work, tmp_path / "seg.nii.gz", scan="both.nii") == 2
    assert "--volume K" in capsys.readouterr().err
    assert segment(work, tmp_path / "seg.nii.gz", "--volume", "1", "--no-montage", scan="both.nii") == 0
    np.testing.assert_array_equal(read_volume(tmp_path / "seg.nii.gz").data, read_volume(segmented / "seg.nii.gz").data)


def test_what_is_no_number_is_refused_or_set_to_zero(work, tmp_path, capsys):
    scan = nib.load(work / "scan.nii.gz")
    data = np.asarray(scan.dataobj, np.float32)
    data[5, 5, 5] = np.nan
    nib.save(nib.Nifti1Image(data, scan.affine), work / "nan.nii")
    assert segment(work, tmp_path / "seg.nii.gz", scan="nan.nii") == 2
    assert "1 NaN" in capsys.readouterr().err
    assert segment(work, tmp_path / "seg.nii.gz", "--nan", "zero", scan="nan.nii") == 0
    assert any("1 NaN" in note for note in json.loads((tmp_path / "seg.json").read_text())["JaxSR"]["Notes"])


def test_one_of_several_that_fails_does_not_stop_the_others(work, tmp_path, capsys):
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "a.nii.gz").write_bytes(b"no volume")
    (scans / "b.nii.gz").write_bytes((work / "scan.nii.gz").read_bytes())
    assert segment(tmp_path, tmp_path / "none", scan="scans", model="gone") == 4
    words = ("-i", scans, "-o", tmp_path / "out", "-m", work / "anatomy.safetensors", "--no-montage")
    assert cli("segment", *words) == 1
    told = capsys.readouterr()
    assert "1 of 2 failed" in told.err
    assert "grey " in told.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.json", "b.nii.gz"]
    (tmp_path / "empty").mkdir()
    assert cli("segment", "-i", tmp_path / "empty", "-o", tmp_path / "out", "-m", work / "anatomy.safetensors") == 3
