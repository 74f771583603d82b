"""Laws of posterior samples: what their mean and deviation are, and that a sample is one whatever it is drawn with."""

import json
import tracemalloc

import jax
import numpy as np
import pytest

from jaxsr.evaluate.files import sidecar_path
from jaxsr.experiment import Experiment
from jaxsr.methods.autoencoder import AutoencoderConfig
from jaxsr.methods.base import Request, UpscaleOutput
from jaxsr.physics.protocol import load_acquisition
from jaxsr.runtime.mesh import make_mesh
from jaxsr.upscale.consistency import Consistency
from jaxsr.upscale.engine import Engine
from jaxsr.upscale.files import make_engine, upscale_file
from jaxsr.upscale.inputs import Job, memory_needed
from jaxsr.upscale.model import Model, ModelError
from jaxsr.upscale.samples import Moments, draw
from jaxsr.upscale.settings import Settings, declared_acquisition
from jaxsr.volume.io import Volume, VolumeError, read_volume, write_volume

REQUEST = Request(steps=1)
HEAD = Volume(np.random.default_rng(0).normal(100, 20, (17, 24, 19)).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
SPREAD = 0.1  # in the window −1…1


class Noisy:
    """Adds to each slice noise of its own key: a posterior that is known."""

    multiple = 8
    default_request = REQUEST
    most_steps = 100

    def upscale(self, variables, condition, keys, request):
        noise = jax.vmap(lambda key: jax.random.normal(key, condition.low.shape[1:]))(keys)
        return UpscaleOutput(condition.low + SPREAD * noise, {"mean": noise.mean((1, 2, 3))})


@pytest.fixture(scope="module")
def engine():
    return Engine(Noisy(), {}, make_mesh(), batch_size=8)


@pytest.fixture
def job(tmp_path):
    write_volume(tmp_path / "v.nii", HEAD)
    return Job(tmp_path / "v.nii", tmp_path / "out.nii")


def model(method):
    return Model("run", 1, Experiment(method=AutoencoderConfig()), method, {}, "0")


@pytest.mark.parametrize("count", [2, 3, 17])
def test_running_moments_are_those_of_all_at_once(count):
    """Welford's sums, also where the mean is a million times the deviation."""
    data = (1e6 + np.random.default_rng(0).normal(size=(count, 3, 4, 5))).astype(np.float32)
    moments = Moments()
    for one in data:
        moments.add(one)
    mean, std = moments.finish()
    np.testing.assert_array_equal(mean, data.mean(0, dtype=np.float64).astype(np.float32))
    np.testing.assert_allclose(std, data.std(0, ddof=1, dtype=np.float64), rtol=1e-6)


def test_sample_k_is_the_same_volume_whatever_their_number_is_and_the_first_is_the_output_without_samples(engine):
    alone = engine.upscale(HEAD, REQUEST, seed=3).volume.data
    drawn: dict[int, list[np.ndarray]] = {}
    for count in (2, 4):
        draw(engine, HEAD, REQUEST, count, seed=3, each=lambda k, result: drawn.setdefault(k, []).append(result.volume.data))
    np.testing.assert_array_equal(drawn[0][0], alone)
    for k in (0, 1):
        np.testing.assert_array_equal(*drawn[k])
    assert np.abs(drawn[0][0] - drawn[1][0]).max() > 1


def test_one_compiled_program_of_each_shape_serves_all_samples():
    engine = Engine(Noisy(), {}, make_mesh(), batch_size=8)
    samples = draw(engine, HEAD, REQUEST, 5)
    assert samples.mean.compilations == engine.compilations == samples.mean.plan.compilations


def test_the_deviation_is_that_of_the_posterior_in_the_units_of_the_input(engine):
    """SPREAD in the window's units; averaged over three axes with noise of their own, over √3."""
    samples = draw(engine, HEAD, REQUEST, 40)
    window = samples.mean.window
    expected = SPREAD / np.sqrt(3) * (window.high - window.low) / 2
    assert samples.std.data.mean() == pytest.approx(expected, rel=0.02)  # 7752 voxels; E[s] is 0.6 % below σ at 40
    np.testing.assert_allclose(samples.mean.volume.data, HEAD.data, atol=6 * expected / np.sqrt(40))
    np.testing.assert_array_equal(samples.std.affine, samples.mean.volume.affine)


def test_mean_and_deviation_do_not_depend_on_the_batch_size(engine):
    one, other = (draw(e, HEAD, REQUEST, 3) for e in (engine, Engine(Noisy(), {}, make_mesh(), batch_size=3)))
    for a, b in ((one.mean.volume, other.mean.volume), (one.std, other.std)):
        np.testing.assert_allclose(a.data, b.data, atol=1e-5 * np.abs(HEAD.data).max())


def test_progress_goes_over_all_samples(engine):
    seen = []
    draw(engine, HEAD, REQUEST, 3, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3 * sum(HEAD.data.shape),) * 2
    assert seen == sorted(seen)


def test_samples_are_written_with_their_mean_and_their_deviation_and_say_so(job):
    settings = Settings(2.0, REQUEST, picture=False, samples=3, keep_samples=True)
    done = upscale_file(make_engine(model(Noisy()), batch_size=8), model(Noisy()), job, settings)
    names = ["out_sample-0.nii", "out_sample-1.nii", "out_sample-2.nii", "out_std.nii"]
    assert [path.name for path in done.maps] == names
    kept = np.stack([read_volume(job.output.with_name(name)).data for name in names[:3]]).astype(np.float64)
    np.testing.assert_allclose(read_volume(job.output).data, kept.mean(0), rtol=1e-6)
    np.testing.assert_allclose(read_volume(job.output.with_name("out_std.nii")).data, kept.std(0, ddof=1), rtol=1e-5, atol=1e-5)
    facts = json.loads(sidecar_path(job.output.with_name("out_std.nii")).read_text())
    assert facts["JaxSR"]["Map"] == "std"
    assert facts["JaxSR"]["Samples"] == json.loads(sidecar_path(job.output).read_text())["JaxSR"]["Samples"] == 3
    assert facts["Sources"] == ["v.nii"]


def test_what_does_not_sample_is_drawn_once_and_its_deviation_is_zero_with_the_reason(job, identity_method):
    told = []
    settings = Settings(2.0, REQUEST, picture=False, samples=9)
    progress = []
    engine = make_engine(model(identity_method), batch_size=8)
    done = upscale_file(
        engine, model(identity_method), job, settings, note=told.append, progress=lambda n, total: progress.append((n, total))
    )
    assert progress[-1] == (sum(HEAD.data.shape),) * 2
    assert "does not sample" in done.facts["JaxSR"]["SamplesNote"]
    assert any("does not sample" in sentence for sentence in told)
    deviation = read_volume(job.output.with_name("out_std.nii"), constant="allow")
    assert not deviation.data.any()


def test_a_single_sample_leaves_no_map_and_says_nothing_of_samples(job):
    done = upscale_file(make_engine(model(Noisy()), batch_size=8), model(Noisy()), job, Settings(2.0, REQUEST, picture=False))
    assert done.maps == ()
    assert "Samples" not in done.facts["JaxSR"]
    assert sorted(path.name for path in job.output.parent.iterdir()) == ["out.json", "out.nii", "v.nii"]


def test_the_host_holds_two_sums_and_not_the_samples(tmp_path):
    """And `memory_needed` says how much that is."""
    volume = Volume(np.random.default_rng(0).normal(100, 30, (80, 90, 100)).astype(np.float32), np.eye(4), path=tmp_path / "v.nii")
    write_volume(tmp_path / "v.nii", volume)
    engine, peaks = make_engine(model(Noisy()), batch_size=8), []
    engine.upscale(volume, REQUEST, to_mm=1.0)  # what compiling takes is not meant
    for count in (2, 5):
        tracemalloc.start()
        settings = Settings(1.0, REQUEST, picture=False, samples=count)
        try:
            upscale_file(engine, model(Noisy()), Job(tmp_path / "v.nii", tmp_path / f"out{count}.nii"), settings)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    expected = memory_needed(volume, volume.grid, picture=False, samples=2)
    assert 0.65 * expected < max(peaks) < expected
    assert peaks[1] < 1.05 * peaks[0]


def test_maps_of_an_output_that_is_redone_without_them_do_not_stay(job):
    engine = make_engine(model(Noisy()), batch_size=8)
    upscale_file(engine, model(Noisy()), job, Settings(2.0, REQUEST, picture=False, samples=3, keep_samples=True))
    somebodys = job.output.with_name("out_consistency.nii")
    somebodys.write_bytes(b"not ours")
    upscale_file(engine, model(Noisy()), job, Settings(2.0, REQUEST, picture=False, samples=2))
    assert sorted(path.name for path in job.output.parent.glob("*.nii")) == ["out.nii", "out_consistency.nii", "out_std.nii", "v.nii"]
    upscale_file(engine, model(Noisy()), job, Settings(2.0, REQUEST, picture=False))
    assert sorted(path.name for path in job.output.parent.iterdir()) == ["out.json", "out.nii", "out_consistency.nii", "v.nii"]


def test_an_output_is_kept_where_its_consistency_map_cannot_be_made_and_both_say_why(job):
    """The head is too small for its noise to be found."""
    told = []
    settings = Settings(2.0, REQUEST, picture=False, consistency=Consistency(load_acquisition("1.5T")))
    done = upscale_file(make_engine(model(Noisy()), batch_size=8), model(Noisy()), job, settings, note=told.append)
    assert job.output.exists()
    assert done.maps == ()
    assert "no noise is to be found" in done.facts["JaxSR"]["Consistency"]["LeftOut"]
    assert any(sentence.startswith("v.nii: no consistency map: no noise is to be found") for sentence in told)


def test_what_was_learnt_from_real_pairs_does_not_say_how_scans_are_acquired():
    data = {"acquired": (2.0, 2.0, 2.0)}
    experiment = Experiment(method=AutoencoderConfig(), data=data)
    with pytest.raises(ModelError, match="give --acquisition NAME"):
        declared_acquisition(experiment)
    named = load_acquisition("64mT")
    assert declared_acquisition(experiment, named, 3.0) == Consistency(named, 3.0)
    assert declared_acquisition(Experiment(method=AutoencoderConfig())).acquisition.name == "1.5T"


def test_a_map_of_somebody_elses_is_not_replaced(job):
    job.output.with_name("out_std.nii").write_bytes(b"somebody's")
    with pytest.raises(VolumeError, match=r"out_std\.nii exists and was not written by jaxsr"):
        upscale_file(make_engine(model(Noisy()), batch_size=8), model(Noisy()), job, Settings(2.0, REQUEST, picture=False, samples=2))
    assert not job.output.exists()
