"""What training starts from: networks of files and runs, taken as they are where the config describes them, refused or told where not."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.bench.synthetic import synthetic_variables
from jaxsr.config import ConfigError, differences, from_dict, to_dict
from jaxsr.experiment import FREE_ON_RESUME, Experiment
from jaxsr.methods.base import Request
from jaxsr.methods.condition import Condition
from jaxsr.methods.sr3 import TOLD_AS_ONE
from jaxsr.train.build import abstract_batch, build_method
from jaxsr.train.loop import _settled
from jaxsr.train.state import abstract_variables
from jaxsr.upscale.export import export_model
from jaxsr.upscale.model import Model, load_start
from jaxsr.weights.file import digest, write_arrays
from jaxsr.weights.standard import SHIPPED

NETWORK = {"channels": 1, "width": 4, "multipliers": [1, 1], "blocks": 1, "latent": 2, "groups": 2}
UNET = {"width": 4, "multipliers": [1], "blocks": 1, "attention_at": [1], "heads": 2, "context_width": 6, "groups": 2}
CLIP = {"patch": 8, "width": 6, "layers": 1, "heads": 2, "projection": 6, "side": 16}
ENCODER = {**CLIP, "train": True}
GUIDANCE = {"width": 2, "groups": 2, "gradient": False}


def autoencoder(**settings):
    return from_dict({"method": {"kind": "autoencoder", "network": NETWORK, **settings}, "data": {"crop": 8}}, Experiment)


def teacher(weights=None, **settings):
    method = {"kind": "teacher", "autoencoder": {"network": NETWORK}, "unet": UNET, "image_encoder": ENCODER, "guidance": GUIDANCE}
    method |= {"weights": {name: str(path) for name, path in (weights or {}).items()}, **settings}
    return from_dict({"method": method, "data": {"crop": 8, "maps": ["bias"]}}, Experiment)


SR3 = {"width": 4, "multipliers": [1], "blocks": 1, "attention_at": [], "groups": 2, "dropout": 0.0, "middle_attention": False}


def sr3(weights=None, **settings):
    return from_dict({"method": {"kind": "sr3", "network": SR3, "weights": {"sr3": weights}, **settings}, "data": {"crop": 8}}, Experiment)


@functools.cache
def drawn(experiment):
    """Its method, and random variables of it."""
    method = build_method(experiment)
    return method, synthetic_variables(method, abstract_batch(experiment), 0)


def exported(experiment, path):
    """Those variables in a file, as a run's."""
    method, variables = drawn(experiment)
    export_model(Model("made", 1, experiment, method, variables, digest(variables["params"])), path)
    return variables


def imported(path, kind, sizes, **variables):
    about = {"format": "jaxsr weights 1", "kind": kind, "configuration": json.dumps(sizes), "sha256": digest(variables)}
    write_arrays(path, variables, about)
    return variables


def sizes_of(unet, channels):
    return {"in_channels": channels, "channels": NETWORK["latent"], **unet}


def described(method):
    """An experiment of the method."""
    cubes = {"data": {"crop": 8, "draws": 96}, "train": {"batch_size": 24}}
    return Experiment(method=method, **(cubes if getattr(method, "fused", False) else {"data": {"crop": 8, "maps": ["bias"]}}))


@functools.cache
def shapes_of(method):
    return abstract_variables(method.build(), abstract_batch(described(method)))


@pytest.fixture(autouse=True)
def _shapes_are_traced_once(monkeypatch):
    """They do not depend on where weights are."""

    def of(method, batch):
        return shapes_of(method.config.model_copy(update={"weights": type(method.config.weights)()}))

    monkeypatch.setattr("jaxsr.upscale.model.abstract_variables", of)


def start(experiment, note=None):
    return load_start(experiment, build_method(experiment), note or pytest.fail)


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("kind", ["exported", "imported"])
def test_an_autoencoder_starts_from_the_one_that_its_config_names(kind, tmp_path):
    path = tmp_path / "autoencoder.safetensors"
    params = drawn(autoencoder())[1]["params"]
    if kind == "exported":
        params = exported(autoencoder(), path)["params"]
    else:
        imported(path, "autoencoder", NETWORK, params=params)
    named = autoencoder(weights={"autoencoder": str(path)})
    same(start(named), params)
    assert start(autoencoder()) == {}
    # A run goes on without it, as a teacher does: it was only its start.
    assert all(change.startswith(FREE_ON_RESUME) for change in differences(named, autoencoder()))


def test_configs_of_before_an_autoencoder_could_start_from_weights_are_read():
    before = to_dict(autoencoder())
    del before["method"]["weights"]
    assert from_dict(before, Experiment) == autoencoder()
    assert "weights" not in to_dict(teacher())["method"]["autoencoder"]  # there it is frozen


def test_weights_of_an_image_encoder_that_is_left_out_are_a_config_error():
    with pytest.raises(ConfigError, match="make both null, or give its sizes"):
        teacher(weights={"image_encoder": "a"}, image_encoder=None)


@pytest.mark.parametrize("name, sizes, other, message", [
    ("unet", sizes_of(UNET, 4), {"heads": 1}, r"method\.unet says.*\n.*heads: 1 → 2"),
    ("autoencoder", NETWORK, {"groups": 1}, r"method\.network says.*\n.*groups: 1 → 2"),
    ("image_encoder", CLIP, {"heads": 1}, r"method\.image_encoder says.*\n.*heads: 1 → 2"),
])  # fmt: skip
def test_a_file_that_says_another_network_of_the_same_shapes_is_refused_with_both_values(name, sizes, other, message, tmp_path):
    path, alone = tmp_path / "other.safetensors", name == "autoencoder"
    params = drawn(autoencoder() if alone else teacher())[1]["params"]
    experiment = autoencoder(weights={name: str(path)}) if alone else teacher({name: path})
    for said in (sizes, {**sizes, **other}):
        imported(path, {"image_encoder": "clip"}.get(name, name), said, params=params if alone else params[name])
        if said is sizes:
            start(experiment)
        else:
            with pytest.raises(ConfigError, match=message):
                start(experiment)


def test_zero123_s_layer_to_the_context_comes_with_its_unet_only_where_it_fits(tmp_path):
    """It is CLIP's pooled token that it was made for, of as many features."""
    told, context = [], {"kernel": np.eye(6, dtype=np.float32), "bias": np.ones(6, np.float32)}
    unet = drawn(teacher())[1]["params"]["unet"]
    imported(tmp_path / "unet.safetensors", "unet", sizes_of(UNET, 4), params=unet, context=context)
    weights = {"unet": tmp_path / "unet.safetensors"}
    same(start(teacher(weights)), {"unet": unet, "context": context})
    for other in ({"projection": 4}, {"context": "patches"}):
        found = start(teacher(weights, image_encoder={**ENCODER, **other}), told.append)
        assert found.keys() == {"unet"}
    assert ["layer to the context" in sentence and "starts untrained" in sentence for sentence in told] == [True, True]
    assert start(teacher(weights, image_encoder=None)).keys() == {"unet"}


def test_a_unet_without_a_condition_starts_as_exactly_what_it_was(tmp_path):
    """Stable Diffusion's, of the latents alone: whatever the condition is, it answers as published."""
    told, experiment = [], teacher({"unet": tmp_path / "unet.safetensors"})
    method, variables = drawn(experiment)
    unet = variables["params"]["unet"]
    narrow = {**unet, "stem": {**unet["stem"], "kernel": unet["stem"]["kernel"][:, :, :2]}}
    imported(tmp_path / "unet.safetensors", "unet", sizes_of(UNET, 2), params=narrow)
    found = start(experiment, told.append)["unet"]
    assert "zeros for the condition's columns" in told[0]
    z, *conditions = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 2))
    context = jax.random.normal(jax.random.key(1), (2, 1, 6))
    apply = jax.jit(functools.partial(method.unet.apply, time=jnp.array([3.0, 500.0]), context=context))
    published = apply({"params": narrow}, z)
    one, other = (apply({"params": found}, jnp.concatenate([z, condition], -1)) for condition in conditions)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(one, published, atol=1e-5 * jnp.abs(published).max())
    # All else that differs is refused.
    with pytest.raises(ConfigError, match=r"does not fit method\.unet, in 3 places(.*\n)*.*'stem.*\(3, 3, 2, 4\), expected \(3, 3, 6, 4\)"):
        start(teacher({"unet": tmp_path / "unet.safetensors"}, autoencoder={"network": {**NETWORK, "latent": 3}}))


def test_a_teacher_starts_from_another_with_all_that_stands_beside_its_unet(tmp_path):
    path, told = tmp_path / "teacher.safetensors", []
    params = exported(teacher(), path)["params"]
    same(start(teacher({"unet": path})), {name: params[name] for name in ("unet", "context", "guidance")})
    same(start(teacher({"image_encoder": path})), {"image_encoder": params["image_encoder"]})
    # Guidance and image encoder may be others, then they start anew; how often a map is left out is no other.
    found = start(teacher({"unet": path}, guidance={**GUIDANCE, "dropout": 0.5}, image_encoder={**ENCODER, "heads": 1}), told.append)
    assert found.keys() == {"unet", "guidance"}
    found = start(teacher({"unet": path}, guidance={**GUIDANCE, "groups": 1}), told.append)
    assert found.keys() == {"unet", "context"}
    assert ["context" in told[0], "guidance" in told[1], len(told)] == [True, True, 2]


@pytest.mark.parametrize("name, settings, message", [
    ("unet", {"unet": {**UNET, "heads": 1}}, r"method\.unet says.*\n.*heads: 2 → 1"),
    ("image_encoder", {"image_encoder": {**ENCODER, "heads": 1}}, r"method\.image_encoder says.*\n.*heads: 2 → 1"),
])  # fmt: skip
def test_a_teacher_with_another_network_is_refused_with_both_values(name, settings, message, tmp_path):
    exported(teacher(), tmp_path / "teacher.safetensors")
    with pytest.raises(ConfigError, match=message):
        start(teacher({name: tmp_path / "teacher.safetensors"}, **settings))


def test_a_model_of_another_kind_is_refused(tmp_path):
    exported(autoencoder(), tmp_path / "autoencoder.safetensors")
    with pytest.raises(ConfigError, match="holds a model of kind autoencoder, expected teacher"):
        start(teacher({"unet": tmp_path / "autoencoder.safetensors"}))
    exported(teacher(image_encoder=None), tmp_path / "teacher.safetensors")
    with pytest.raises(ConfigError, match="holds a teacher without image encoder"):
        start(teacher({"image_encoder": tmp_path / "teacher.safetensors"}))


def test_an_sr3_starts_from_another_that_is_shown_the_same(tmp_path):
    path = tmp_path / "sr3.safetensors"
    params = exported(sr3(context=1), path)["params"]
    same(start(sr3(str(path), context=1, loss="l2", terminal=0.5)), params)
    with pytest.raises(ConfigError, match=r"(?s)trained in another way.*method\.context: 1 → 2"):
        start(sr3(str(path), context=2))
    with pytest.raises(ConfigError, match=r"method\.network says.*\n.*groups: 2 → 1"):
        start(sr3(str(path), context=1, network={**SR3, "groups": 1}))


def test_one_that_is_told_the_scale_starts_from_one_that_was_not_and_not_the_other_way_round(tmp_path):
    told, path, other = [], tmp_path / "sr3.safetensors", tmp_path / "told.safetensors"
    params = exported(sr3(), path)["params"]
    same(start(sr3(str(path), scale_conditioning=True), told.append), params)
    assert ["was not told how coarse a scan is" in sentence for sentence in told] == [True]
    params = exported(sr3(scale_conditioning=True), other)["params"]
    same(start(sr3(str(other), scale_conditioning=True), told.append), params)
    assert len(told) == 1
    with pytest.raises(ConfigError, match=r"is told how coarse a scan is: set method.scale_conditioning=true"):
        start(sr3(str(other)))


LATER = {
    "passes": (2, "shown what it made of a volume before"),
    "axes_conditioning": (True, "told over how many axes the mean is"),
    "quality_conditioning": (True, "told how sharp and how noisy a scan is"),
}


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("had", [(), ("axes_conditioning",), ("quality_conditioning",), ("passes", "axes_conditioning")], ids="+".join)
def test_one_that_is_shown_or_told_more_starts_as_the_one_that_was_not(tmp_path, patch, had):
    """Whatever the estimate is, and of a typical scan along three axes whatever it was told of before, it upscales as that does; of another
    it need not, as it listens."""
    path, settings = tmp_path / "sr3.safetensors", {"network": {**SR3, "patch": patch}, "context": 1, "residual_std": 0.1}
    settings |= {"scale_conditioning": True, "terminal": 0.5, "prediction": "x0"}
    sized = {"data": {"crop": 8, "draws": 96}, "train": {"batch_size": 24}}
    of = lambda more: from_dict({"method": {"kind": "sr3", **settings, "fused": True, **more}, **sized}, Experiment)  # noqa: E731
    before = of({name: LATER[name][0] for name in had})
    params = exported(before, path)["params"]
    now = of({name: value for name, (value, _) in LATER.items()} | {"weights": {"sr3": str(path)}})
    said = []
    started = start(now, said.append)
    assert len(said) == 1
    assert all((sentence in said[0]) == (name not in had) for name, (_, sentence) in LATER.items())
    low, around, estimate = (jax.random.normal(jax.random.key(i), (2, 8, 8, n)) for i, n in enumerate((1, 2, 3)))
    axes = jnp.array([1.0 if "axes_conditioning" in had else 3.0, 3.0])
    quality = (
        jax.random.uniform(jax.random.key(4), (2, 5)) + 0.1 if "quality_conditioning" in had else jnp.tile(jnp.array(TOLD_AS_ONE), (2, 1))
    )
    of = Condition(low, beside=around, scale=jnp.full((2, 3), 2.0), axes=axes, estimate=estimate, quality=quality)
    keys = jax.random.split(jax.random.key(7), 2)
    images = [
        build_method(experiment).upscale({"params": params, "stats": {}}, of, keys, Request(steps=1)).image
        for experiment, params in ((before, params), (now, started))
    ]
    np.testing.assert_allclose(*images, atol=1e-5)
    first = np.asarray(started["scale_in"]["kernel"])  # the scale, the axes, the quality
    assert first.shape[0] == 9
    told = {"axes_conditioning": [3], "quality_conditioning": [4, 5, 6, 7, 8]}
    for row in (row for name, rows in told.items() if name not in had for row in first[rows]):
        assert 0.5 < 3 * np.std(row) < 1.6  # as a layer of nine inputs begins


@pytest.mark.parametrize(
    "less, way_out",
    [
        ({"passes": 1}, "made of a volume before: set method.passes=2"),
        ({"axes_conditioning": False}, "set method.axes_conditioning=true"),
        ({"quality_conditioning": False}, "set method.quality_conditioning=true"),
    ],
)
def test_one_that_is_shown_or_told_more_starts_none_that_is_not(tmp_path, less, way_out):
    more = {
        "scale_conditioning": True,
        "terminal": 0.5,
        "residual_std": 0.1,
        "fused": True,
        **{name: value for name, (value, _) in LATER.items()},
    }
    sized = {"data": {"crop": 8, "draws": 96}, "train": {"batch_size": 24}}
    of = lambda **settings: from_dict({"method": {"kind": "sr3", "network": SR3, **settings}, **sized}, Experiment)  # noqa: E731
    exported(of(**more), tmp_path / "more.safetensors")
    with pytest.raises(ConfigError, match=way_out):
        start(of(**{**more, **less}, weights={"sr3": str(tmp_path / "more.safetensors")}))


def test_a_run_that_starts_from_the_model_that_comes_along_says_where_that_lies():
    settled = _settled(sr3("standard"))
    assert settled.method.weights.sr3 == SHIPPED
