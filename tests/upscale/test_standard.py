"""The model that comes with jaxsr: that it is whole, what it says of itself, and that it is worth having."""

import jax
import numpy as np
import pytest

from jaxsr.data.acquired import simulate
from jaxsr.data.anatomy import template_t1
from jaxsr.evaluate.metrics.pixel import psnr
from jaxsr.experiment import load_experiment
from jaxsr.physics.acquisition import named_acquisition
from jaxsr.upscale.files import make_engine
from jaxsr.upscale.model import load_model
from jaxsr.volume.geometry import resample
from jaxsr.volume.io import Volume
from jaxsr.weights.file import read_about
from jaxsr.weights.standard import SHIPPED, STANDARD, named_model

CONFIG = "configs/standard.yaml"


@pytest.fixture(scope="module")
def model():
    return load_model(SHIPPED)


@pytest.fixture(scope="module")
def engine(model):
    return make_engine(model, batch_size=8)


@pytest.fixture(scope="module")
def truth():
    """The middle of the T1 template that comes with nilearn, which is in no training set."""
    template = template_t1()
    start = [n // 2 - 32 for n in template.data.shape]
    inner = tuple(slice(s, s + 64) for s in start)
    return Volume(np.ascontiguousarray(template.data[inner]), template.affine)


def test_it_is_small_and_says_that_it_is_for_research(model):
    assert SHIPPED.stat().st_size <= 12e6
    about = read_about(SHIPPED)
    assert about["dtype"] == "float16"
    assert "Research use only" in about["model_card"]
    assert "/" not in about["experiment"].replace("\\/", "")  # where the training data lay is nobody's business
    assert model.step == model.experiment.train.steps


def test_it_was_trained_as_the_config_in_the_repository_says(model, request):
    """But for where the data lay, which the file does not say."""
    path = request.config.rootpath / CONFIG
    if not path.is_file():
        pytest.skip(f"{CONFIG} is in the repository, not in the package")
    config = load_experiment(path)
    start = type(config.method.weights)()
    assert config.method.model_copy(update={"weights": start}) == model.experiment.method
    assert config.data.acquisitions == model.experiment.data.acquisitions
    assert [s.acquisitions for s in config.data.mixture] == [s.acquisitions for s in model.experiment.data.mixture]
    assert (config.train, config.optimizer, config.seed) == (model.experiment.train, model.experiment.optimizer, model.experiment.seed)


def test_it_goes_by_its_name_unless_something_else_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named_model(STANDARD) == SHIPPED
    (tmp_path / "standard").mkdir()
    assert named_model(STANDARD) == STANDARD


@pytest.mark.parametrize("name", ["1.5T", "3T", "thick-slice"])
def test_it_is_better_than_every_interpolation_on_a_head_that_it_has_never_seen(name, model, engine, truth):
    low = simulate(truth, named_acquisition(name).typical, jax.random.key(0))
    made = engine.upscale(low, model.method.default_request, to_mm=truth.grid).volume.data
    inner, span = (slice(6, -6),) * 3, float(np.ptp(truth.data))
    score = lambda image: float(psnr(image[inner], truth.data[inner], data_range=span))  # noqa: E731
    best = max(score(resample(low.data, low.grid, truth.grid, kind)) for kind in ("nearest", "linear", "cubic", "kspace"))
    assert score(made) > best + 0.5


def test_modes_differ_and_each_gives_the_same_again(model, engine, truth):
    low = simulate(truth, named_acquisition("1.5T").typical, jax.random.key(0))
    default = model.method.default_request
    sharp = default._replace(steps=model.experiment.method.sharp_steps)
    one = engine.upscale(low, sharp, to_mm=truth.grid, axes=["axial"]).volume.data
    np.testing.assert_array_equal(engine.upscale(low, sharp, to_mm=truth.grid, axes=["axial"]).volume.data, one)
    faithful = engine.upscale(low, default, to_mm=truth.grid, axes=["axial"]).volume.data
    assert np.abs(one - faithful).max() > 0.01 * np.ptp(truth.data)
