"""Laws of importing: a kind finds its part, deduces its network, uses every tensor; the file says what it is, and is that or refused."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from jaxsr.files import FileError
from jaxsr.models.clip import VisionTransformer
from jaxsr.models.perceptual import SCALE, SHIFT
from jaxsr.weights import autoencoder, clip, deduced, perceptual, unet
from jaxsr.weights.file import WeightsError, digest, read_about, write_arrays
from jaxsr.weights.imported import import_weights, read_weights, verify
from jaxsr.weights.kinds import KINDS
from jaxsr.weights.names import Piece

UNET = {
    **{"in_channels": 8, "channels": 4, "width": 32, "multipliers": [1, 2], "blocks": 1},
    **{"attention_at": [2], "depth": 1, "context_width": 12, "heads": 8, "groups": 32},
}
AUTOENCODER = {"channels": 3, "width": 32, "multipliers": [1, 2], "blocks": 1, "latent": 4, "groups": 32}
CLIP = {"patch": 4, "width": 64, "layers": 2, "heads": 1, "projection": 12, "side": 8}
UNET_NETWORK = deduced.unet_network(UNET)

UNET_NAMES = {"ldm": unet.ldm_names(UNET_NETWORK), "diffusers": unet.diffusers_names(UNET_NETWORK)}
AUTOENCODER_NAMES = {
    "ldm": autoencoder.ldm_names((1, 2), 1),
    "diffusers": autoencoder.diffusers_names((1, 2), 1),
    "old diffusers": autoencoder.diffusers_names((1, 2), 1, old=True),
}
CLIP_NAMES = {"OpenAI": clip.openai_names(2), "transformers": clip.transformers_names(2)}
CASES = [
    *(("unet", UNET, layout, names) for layout, names in UNET_NAMES.items()),
    *(("autoencoder", AUTOENCODER, layout, names) for layout, names in AUTOENCODER_NAMES.items()),
    *(("clip", CLIP, layout, names) for layout, names in CLIP_NAMES.items()),
]
EVERY = pytest.mark.parametrize("kind, sizes, layout, names", CASES, ids=[f"{case[0]}-{case[2]}" for case in CASES])


SHAPES = {kind: KINDS[kind].shapes(sizes) for kind, sizes in {"unet": UNET, "autoencoder": AUTOENCODER, "clip": CLIP}.items()}


def drawn(kind):
    """Parameters of ours, by name."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES[kind].items()}


def published(arrays, names):
    """Our `arrays` under their names, as they lie there."""
    parts = {}
    for ours, theirs in names.items():
        piece = Piece(theirs) if isinstance(theirs, str) else theirs
        array = arrays[ours]
        if ours.endswith("/kernel") and piece.turned:
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        parts.setdefault(piece.name, {})[piece.part] = array
    return {name: np.ascontiguousarray(np.concatenate([found[k] for k in sorted(found)])) for name, found in parts.items()}


def under(prefix, arrays):
    return {prefix + name: array for name, array in arrays.items()}


@pytest.fixture(scope="module")
def whole():
    """A checkpoint as Zero-1-to-3 has it: the networks under their prefixes, a moving average, buffers, a rest of CLIP's text tower."""
    context = {"weight": np.arange(12 * 16, dtype=np.float32).reshape(12, 16), "bias": np.arange(12, dtype=np.float32)}
    tower = published(drawn("clip"), CLIP_NAMES["OpenAI"])
    text = {"positional_embedding": np.ones((3, 2), np.float32), "logit_scale": np.ones((), np.float32)}
    return {
        **published(drawn("unet"), UNET_NAMES["ldm"]),
        **published(drawn("autoencoder"), AUTOENCODER_NAMES["ldm"]),
        **under("cond_stage_model.model.", tower | text),
        **under("cond_stage_model.", {"mean": np.ones(3, np.float32)}),
        **under("cc_projection.", context),
        **{"model_ema.diffusion_modelout2bias": np.ones(4, np.float32), "betas": np.ones(9, np.float32)},
    }


@pytest.fixture
def checkpoint(whole, tmp_path):
    save_file(whole, tmp_path / "whole.safetensors")
    return tmp_path / "whole.safetensors"


def assert_same(found, expected):
    found = flatten_dict(found, sep="/")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@EVERY
def test_a_published_file_gives_our_parameters_and_its_network_is_told_from_its_shapes(kind, sizes, layout, names, tmp_path):
    arrays, out = drawn(kind), tmp_path / "out.safetensors"
    save_file(published(arrays, names), tmp_path / "in.safetensors")
    converted = import_weights(kind, [tmp_path / "in.safetensors"], out)
    assert (dict(converted.sizes), converted.left) == (sizes, {})
    assert converted.layout == layout.removeprefix("old ")
    read = read_weights(out, kind)
    assert read.sizes == sizes
    assert_same(read.variables["params"], arrays)


@pytest.mark.parametrize("kind, sizes", [("unet", UNET), ("autoencoder", AUTOENCODER)])
def test_what_shapes_do_not_tell_is_as_published_where_a_file_does_not_say_it(kind, sizes, tmp_path):
    tree = {"params": unflatten_dict(drawn(kind), sep="/")}
    said = {name: size for name, size in sizes.items() if name not in ("heads", "groups")}
    about = {"format": "jaxsr weights 1", "kind": kind, "configuration": json.dumps(said), "sha256": digest(tree)}
    write_arrays(tmp_path / "old.safetensors", tree, about)
    assert read_weights(tmp_path / "old.safetensors", kind).sizes == sizes


@pytest.mark.parametrize("kind, sizes, left", [
    ("unet", UNET, {"first_stage_model.", "cond_stage_model.", "model_ema.", "betas"}),
    ("autoencoder", AUTOENCODER, {"model.diffusion_model.", "cond_stage_model.", "cc_projection.", "model_ema.", "betas"}),
    ("clip", CLIP, {"model.diffusion_model.", "first_stage_model.", "cc_projection.", "model_ema.", "betas", "cond_stage_model.",
                    "cond_stage_model.model.positional_embedding", "cond_stage_model.model.logit_scale"}),
])  # fmt: skip
def test_of_a_whole_checkpoint_each_kind_takes_its_part_and_every_other_tensor_is_counted(kind, sizes, left, whole, checkpoint, tmp_path):
    converted = import_weights(kind, [checkpoint], tmp_path / "out.safetensors")
    assert converted.left.keys() == left
    taken = {"unet": "model.diffusion_model.", "autoencoder": "first_stage_model.", "clip": "cond_stage_model.model.visual."}[kind]
    used = sum(name.startswith((taken, "cc_projection.") if kind == "unet" else taken) for name in whole)
    assert used + sum(converted.left.values()) == len(whole)
    assert_same(read_weights(tmp_path / "out.safetensors", kind).variables["params"], drawn(kind))


def test_zero123_s_context_comes_with_its_denoiser_and_without_the_pose(whole, checkpoint, tmp_path):
    """What it makes of CLIP's projection c and the pose zero: W [c; 0] + b."""
    import_weights("unet", [checkpoint], tmp_path / "out.safetensors")
    context = read_weights(tmp_path / "out.safetensors", "unet").variables["context"]
    c = np.random.default_rng(0).normal(size=12)
    expected = whole["cc_projection.weight"] @ np.concatenate([c, np.zeros(4)]) + whole["cc_projection.bias"]
    np.testing.assert_allclose(c @ context["kernel"] + context["bias"], expected, rtol=1e-5)


@pytest.mark.parametrize("change, message", [
    ({"unknown.w": np.ones(1, np.float32)}, r"rest is of no checkpoint that is known \(unknown.w is unknown\)"),
    ({"model.diffusion_model.out.2.bias": None}, r"out.2.bias is missing"),
    ({"model.diffusion_model.more": np.ones(1, np.float32)}, r"\(more is unknown\)"),
    ({"model.diffusion_model.out.0.bias": np.ones(5, np.float32)}, r"out.0.bias has shape \[5\], expected \[32\]"),
    ({"model.diffusion_model.out.0.bias": np.full(32, np.nan, np.float32)}, "params/norm/bias holds NaN"),
    ({"cc_projection.weight": np.ones((12, 12), np.float32)}, r"cc_projection.weight has shape \[12, 12\], expected \[D, D \+ 4\]"),
    ({"cc_projection.bias": None}, r"cc_projection\.bias is missing"),
    ({"model.diffusion_model.input_blocks.0.0.weight": np.ones((31, 8, 3, 3), np.float32)}, "no multiples of the first convolution's 31"),
    ({"model.diffusion_model.input_blocks.0.0.weight": None}, "holds none of model.diffusion_model.input_blocks.0.0.weight"),
    ({"model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": np.ones(3, np.float32)}, "expected 2 dimensions"),
])  # fmt: skip
def test_a_checkpoint_that_is_not_what_it_should_be_is_refused_in_a_sentence(change, message, whole, tmp_path):
    save_file({name: array for name, array in (whole | change).items() if array is not None}, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError, match=message) as raised:
        import_weights("unet", [tmp_path / "bad.safetensors"], tmp_path / "out.safetensors")
    assert "\n" not in str(raised.value)
    assert "bad.safetensors" in str(raised.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_network_that_ours_cannot_be_is_refused(tmp_path):
    """GroupNorm of 32 groups: a width of 16 does not divide."""
    arrays = published(drawn("autoencoder"), AUTOENCODER_NAMES["diffusers"])
    save_file(arrays | {"encoder.conv_in.weight": arrays["encoder.conv_in.weight"][:16].copy()}, tmp_path / "in.safetensors")
    with pytest.raises(WeightsError, match=r"in\.safetensors: no network of ours has the sizes"):
        import_weights("autoencoder", [tmp_path / "in.safetensors"], tmp_path / "out.safetensors")


def test_the_file_says_what_it_is_and_of_what(checkpoint, tmp_path):
    out = tmp_path / "out.safetensors"
    import_weights("clip", [checkpoint], out)
    about = read_about(out)
    assert json.loads(about["configuration"]) == CLIP
    assert (about["kind"], about["layout"]) == ("clip", "OpenAI")
    assert json.loads(about["source"]) == verify(checkpoint)["sha256"]
    found = verify(out)
    assert found["own_digest"]
    assert found["parameters"] == sum(array.size for array in load_file(out).values())


def test_clip_imported_is_the_network_that_it_was(checkpoint, tmp_path):
    import_weights("clip", [checkpoint], tmp_path / "out.safetensors")
    sizes, variables, _ = read_weights(tmp_path / "out.safetensors", "clip")
    network = VisionTransformer(**{name: size for name, size in sizes.items() if name != "side"})
    out = jax.eval_shape(network.apply, variables, jax.ShapeDtypeStruct((1, sizes["side"], sizes["side"], 3), np.float32))
    assert out.pooled.shape == (1, 12)


# ------------------------------------------------------------------------------------------------ sources


def test_shards_are_read_as_one(checkpoint, whole, tmp_path):
    names = sorted(whole)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: whole[name] for name in part}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, part in files.items() for name in part}}))
    import_weights("clip", [checkpoint], tmp_path / "one.safetensors")
    import_weights("clip", [index], tmp_path / "many.safetensors")
    one, many = (read_weights(tmp_path / f"{name}.safetensors", "clip").digest for name in ("one", "many"))
    assert one == many
    assert set(json.loads(read_about(tmp_path / "many.safetensors")["source"])) == {index.name, *files}
    import_weights("clip", [tmp_path / file for file in files], tmp_path / "given.safetensors")
    assert read_weights(tmp_path / "given.safetensors", "clip").digest == one


@pytest.mark.parametrize("index, message", [
    ({"weight_map": {"a": "../../etc/passwd"}}, "no list of shards"),
    ({"weight_map": {"a": "absent.safetensors"}}, "lists absent.safetensors, which is not beside it"),
    ({"weight_map": {"a": 3}}, "no list of shards"),
    ([], "no list of shards"),
])  # fmt: skip
def test_a_list_of_shards_that_makes_no_sense_is_refused(index, message, tmp_path):
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=message):
        import_weights("clip", [tmp_path / "m.safetensors.index.json"], tmp_path / "out.safetensors")


def test_a_name_in_two_files_is_refused(checkpoint, tmp_path):
    save_file({"betas": np.ones(1, np.float32)}, tmp_path / "more.safetensors")
    with pytest.raises(WeightsError, match="holds betas, which another file that was given holds too"):
        import_weights("clip", [checkpoint, tmp_path / "more.safetensors"], tmp_path / "out.safetensors")


@pytest.mark.parametrize("net", ["squeeze", "alex"])
def test_lpips_is_made_of_its_own_state_or_of_torchvision_s_and_the_heads(net, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(shape, np.float32) for name, shape in KINDS["lpips"].shapes({"net": net}).items()}
    constants = {"scaling_layer.shift": np.reshape(SHIFT, (1, 3, 1, 1)), "scaling_layer.scale": np.reshape(SCALE, (1, 3, 1, 1))}
    save_file(published(arrays, perceptual.lpips_names(net)) | constants, tmp_path / "whole.safetensors")
    save_file(
        published(arrays, perceptual.torchvision_names(net)) | {"classifier.1.weight": np.ones((2, 2), np.float32)},
        tmp_path / "backbone.safetensors",
    )
    save_file(published(arrays, perceptual.head_names(net)), tmp_path / "heads.safetensors")
    one = import_weights("lpips", [tmp_path / "whole.safetensors"], tmp_path / "one.safetensors")
    two = import_weights("lpips", [tmp_path / f"{name}.safetensors" for name in ("backbone", "heads")], tmp_path / "two.safetensors")
    assert (one.left, two.left) == ({"scaling_layer.": 2}, {"classifier.": 1})
    for name in ("one", "two"):
        read = perceptual.read_perceptual(tmp_path / f"{name}.safetensors")
        assert read.net == net
        assert_same(read.variables["params"], arrays)
        verify(tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match="holds no whole LPIPS"):
        import_weights("lpips", [tmp_path / "backbone.safetensors"], tmp_path / "three.safetensors")


def test_vgg16_is_its_convolutions_without_the_classifier(tmp_path):
    shapes = KINDS["vgg16"].shapes({})
    assert len(shapes) == 26
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    names = {ours.removeprefix("backbone/"): theirs for ours, theirs in perceptual.torchvision_names("vgg").items()}
    save_file(published(arrays, names) | {"classifier.0.bias": np.ones(2, np.float32)}, tmp_path / "in.safetensors")
    assert import_weights("vgg16", [tmp_path / "in.safetensors"], tmp_path / "out.safetensors").left == {"classifier.": 1}
    assert_same(read_weights(tmp_path / "out.safetensors", "vgg16").variables["params"], arrays)


# ------------------------------------------------------------------------------------------------ the file made


@pytest.mark.parametrize("spoil, message", [
    (lambda arrays, about: arrays["params/class"].__setitem__(0, 9), "is not what was written: the SHA-256 of its arrays differs"),
    (lambda arrays, about: arrays.pop("params/class"), "is not what was written|not in the file"),
    (lambda arrays, about: about.update(configuration="{"), "says of itself what makes no sense"),
    (lambda arrays, about: about.update(configuration=json.dumps(CLIP | {"patch": 0})), "says of itself what makes no sense"),
    (lambda arrays, about: about.update(configuration=json.dumps(CLIP | {"layers": 1})), "does not fit its own configuration"),
    (lambda arrays, about: arrays["params/class"].__setitem__(0, np.inf), "NaN or Inf|is not what was written"),
])  # fmt: skip
def test_a_file_that_is_not_as_it_was_written_is_refused(spoil, message, checkpoint, tmp_path):
    out = tmp_path / "out.safetensors"
    import_weights("clip", [checkpoint], out)
    arrays, about = {name: array.copy() for name, array in load_file(out).items()}, read_about(out)
    spoil(arrays, about)
    save_file(arrays, out, about)
    for judge in (verify, lambda path: read_weights(path, "clip")):
        with pytest.raises(WeightsError, match=message):
            judge(out)


def test_a_file_of_another_kind_or_none_is_refused_with_the_way_to_make_it(checkpoint, tmp_path):
    import_weights("clip", [checkpoint], tmp_path / "out.safetensors")
    with pytest.raises(WeightsError, match="kind 'clip', expected 'unet': make it with `jaxsr weights import unet`"):
        read_weights(tmp_path / "out.safetensors", "unet")
    with pytest.raises(WeightsError, match=r"absent\.safetensors is not there: make it with `jaxsr weights import clip SOURCE"):
        read_weights(tmp_path / "absent.safetensors", "clip")
    with pytest.raises(FileError, match=r"name it .*out\.safetensors"):
        import_weights("clip", [checkpoint], tmp_path / "out.npz")


def test_verify_reads_files_of_others_and_of_export(checkpoint, tmp_path):
    sums = verify(checkpoint)["sha256"]
    assert verify(checkpoint, sums[checkpoint.name].upper())["about"] == {}
    with pytest.raises(WeightsError, match=f"has the SHA-256 {sums[checkpoint.name]}, expected 0000"):
        verify(checkpoint, "0" * 64)
    write_arrays(tmp_path / "nan.safetensors", {"a": {"b": np.array([1, np.nan], np.float32)}}, {})
    with pytest.raises(WeightsError, match="a/b holds NaN or Inf"):
        verify(tmp_path / "nan.safetensors")
