"""The way through the stages is what `upscale` goes and does not keep."""

import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_head, synthetic_variables
from jaxsr.config import from_dict
from jaxsr.experiment import Experiment
from jaxsr.methods.condition import Batch
from jaxsr.train.build import build_method
from jaxsr.upscale.files import make_engine
from jaxsr.upscale.model import Model, ModelError
from jaxsr.upscale.stages import stage_path
from jaxsr.volume.geometry import resample, target_grid
from jaxsr.volume.io import Volume, VolumeError
from jaxsr.weights.file import digest

NETWORK = {"width": 8, "multipliers": [1], "blocks": 1, "attention_at": [], "groups": 4, "middle_attention": False}
STAGES = {"count": 4, "low_mm": 4.0, "high_mm": 2.0}


def model_of(method):
    experiment = from_dict(
        {"method": {"network": NETWORK, "prediction": "v", "residual_std": 0.1, **method}, "data": {"crop": 8}}, Experiment
    )
    built, image = build_method(experiment), np.zeros((1, 8, 8, 1), np.float32)
    variables = synthetic_variables(built, Batch(image, image), 0)
    return Model("made", 1, experiment, built, variables, digest(variables["params"]))


@pytest.mark.parametrize("mm, stages", [(4.0, [0, 1, 2, 3, 4]), (8 / 3, [2, 3, 4])])
def test_it_begins_with_the_scan_and_ends_with_what_upscale_gives(mm, stages):
    model = model_of({"kind": "student", "stages": STAGES, "sampling_steps": 2})
    low = synthetic_head((32, 32, 32), model.experiment)
    low = Volume(low.data[:24, :24, :24], np.diag([mm, mm, mm, 1.0]))
    grid = target_grid(low.grid, 2.0)
    slices = [3, grid.shape[2] // 2]
    path = stage_path(model, low, grid, slices)
    assert path.images.shape == (len(stages), 2, *grid.shape[:2])
    assert path.stages.tolist() == stages
    request = model.method.default_request._replace(to_mm=2.0)
    whole = make_engine(model, batch_size=4).upscale(low, request, to_mm=grid, axes=("axial",)).volume.data
    assert np.ptp(path.images[-1]) > 1
    scan = resample(low.data, low.grid, grid, model.experiment.data.interpolation)
    np.testing.assert_allclose(path.images[0], np.moveaxis(scan[:, :, slices], 2, 0), atol=1e-3 * np.ptp(scan))
    expected = np.moveaxis(whole[:, :, slices], 2, 0)
    np.testing.assert_allclose(path.images[-1], expected, atol=1e-3 * np.ptp(expected))


def test_a_model_without_stages_has_no_way():
    model = model_of({"kind": "sr3"})
    low = synthetic_head((32, 32, 32), model.experiment)
    with pytest.raises(ModelError, match="kind sr3, which has no stages: name a student"):
        stage_path(model, low, low.grid, [3])


@pytest.mark.parametrize("mm, slices, said", [
    (2.5, [3], r"works on pixels of 2 mm, got a grid of 2.5 × 2.5 mm"),
    (2.0, [-1], r"no slice -1: the grid has 0…31"),
    (2.0, [32], r"no slice 32"),
])  # fmt: skip
def test_other_pixels_and_slices_that_are_not_there_are_refused(mm, slices, said):
    model = model_of({"kind": "student", "stages": STAGES})
    low = Volume(np.random.default_rng(0).random((16, 16, 16), np.float32), np.diag([4.0, 4.0, 4.0, 1.0]))
    with pytest.raises(VolumeError, match=said):
        stage_path(model, low, target_grid(low.grid, mm), slices)
