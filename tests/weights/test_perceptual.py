"""Laws of LPIPS' weights: published names become ours one to one, a file gives back what went in, and what is no LPIPS is refused."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from jaxsr.models.perceptual import NETS, SCALE, SHIFT, perceptual_shapes
from jaxsr.weights.file import WeightsError, write_arrays
from jaxsr.weights.perceptual import (
    FORMAT,
    from_lpips,
    from_torchvision,
    head_names,
    lpips_names,
    read_perceptual,
    torchvision_names,
)

NET = "squeeze"  # the smallest


def state(names, net=NET, seed=0):
    """Random arrays of the published shapes under their published names: kernels OIHW, heads above zero."""
    rng = np.random.default_rng(seed)
    shapes = {name: leaf.shape for name, leaf in flatten_dict(perceptual_shapes(net)["params"], sep="/").items()}
    return {
        theirs: rng.random((shapes[ours][3], shapes[ours][2], *shapes[ours][:2]) if len(shapes[ours]) == 4 else shapes[ours], np.float32)
        for ours, theirs in names.items()
    }


def full_state(net=NET):
    """All that the module of lpips keeps: its heads twice, and the constants of its scaling."""
    found = state(lpips_names(net), net)
    twice = {name.replace("lin", "lins.", 1): array for name, array in found.items() if name.startswith("lin")}
    constants = {"scaling_layer.shift": np.reshape(SHIFT, (1, 3, 1, 1)), "scaling_layer.scale": np.reshape(SCALE, (1, 3, 1, 1))}
    return found | twice | constants


@pytest.mark.parametrize("net", NETS)
def test_every_array_of_ours_has_one_published_name_and_none_is_used_twice(net):
    ours = flatten_dict(perceptual_shapes(net)["params"], sep="/").keys()
    assert lpips_names(net).keys() == ours == (torchvision_names(net) | head_names(net)).keys()
    assert len(set(lpips_names(net).values())) == len(set((torchvision_names(net) | head_names(net)).values())) == len(ours)


def test_names_are_those_of_the_published_files():
    """From torchvision's and lpips' sources: a slice of lpips ends with each layer that is compared."""
    assert torchvision_names("alex")["backbone/conv2/kernel"] == "features.3.weight"
    assert torchvision_names("vgg")["backbone/conv5_3/bias"] == "features.28.bias"
    assert torchvision_names("squeeze")["backbone/fire9/expand3x3/kernel"] == "features.12.expand3x3.weight"
    assert lpips_names("alex")["backbone/conv2/kernel"] == "net.slice2.3.weight"
    assert lpips_names("vgg")["backbone/conv5_3/bias"] == "net.slice5.28.bias"
    assert lpips_names("squeeze")["backbone/fire9/expand3x3/kernel"] == "net.slice7.12.expand3x3.weight"
    assert lpips_names("squeeze")["head6/kernel"] == "lin6.model.1.weight"


def test_a_kernel_turns_from_oihw_to_hwio():
    found = state(lpips_names(NET))
    params = from_lpips(NET, found).variables["params"]
    kernel, theirs = params["backbone"]["fire2"]["expand3x3"]["kernel"], found["net.slice2.3.expand3x3.weight"]
    assert kernel.shape == (3, 3, 16, 64)
    assert kernel[0, 2, 5, 40] == theirs[40, 5, 0, 2]
    np.testing.assert_array_equal(params["head2"]["kernel"].ravel(), found["lin2.model.1.weight"].ravel())


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_both_ways_lead_to_the_same_weights(net):
    """A classifier on top, heads held twice and the scaling's constants make no difference."""
    whole = full_state(net)
    backbone = {theirs: whole[lpips_names(net)[ours]] for ours, theirs in torchvision_names(net).items()}
    backbone["classifier.1.weight"] = np.zeros((2, 2), np.float32)
    heads = {name: whole[name] for name in head_names(net).values()}
    one, other = from_lpips(net, whole), from_torchvision(net, backbone, heads)
    assert one.net == other.net == net
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)


def test_a_file_gives_back_what_went_in(tmp_path):
    weights = from_lpips(NET, full_state())
    write_arrays(tmp_path / "lpips.safetensors", weights.variables, {"format": FORMAT, "net": NET})
    read = read_perceptual(tmp_path / "lpips.safetensors")
    assert read.net == NET
    assert jax.tree.structure(read.variables) == jax.tree.structure(weights.variables) == jax.tree.structure(perceptual_shapes(NET))
    jax.tree.map(np.testing.assert_array_equal, read.variables, weights.variables)


@pytest.mark.parametrize("change, message", [
    ({"net.slice1.0.weight": None}, r"network squeeze \(net.slice1.0.weight is missing\): give the published"),
    ({"net.slice9.0.weight": np.zeros(1)}, r"\(net.slice9.0.weight is unknown\)"),
    ({"net.slice1.0.bias": np.zeros(65)}, r"\(net.slice1.0.bias has shape \[65\], expected \[64\]\)"),
    ({"lin0.model.1.weight": np.ones((1, 63)), "lins.0.model.1.weight": None}, r"has shape \[1, 63\], expected \[1, 64, 1, 1\] or"),
    ({"net.slice1.0.bias": np.full(64, np.nan)}, "backbone/conv1/bias holds NaN"),
    ({"lin0.model.1.weight": -np.ones((1, 64, 1, 1)), "lins.0.model.1.weight": None}, "head0/kernel has the weight -1, LPIPS has none"),
    ({"lins.0.model.1.weight": np.ones((1, 64, 1, 1))}, "lins.0.model.1.weight, not the same as lin0.model.1.weight"),
    ({"scaling_layer.shift": np.zeros((1, 3, 1, 1))}, r"\[0.0, 0.0, 0.0\] as scaling_layer.shift, LPIPS 0.1 is \[-0.03, -0.088, -0.188\]"),
])  # fmt: skip
def test_weights_that_are_not_lpips_are_refused_in_one_sentence(change, message):
    changed = {name: array for name, array in (full_state() | change).items() if array is not None}
    with pytest.raises(WeightsError, match=message) as raised:
        from_lpips(NET, changed)
    assert "\n" not in str(raised.value)


def test_another_networks_weights_are_refused_with_the_first_differences():
    with pytest.raises(WeightsError, match=r"do not fit the network squeeze \(.* and \d+ more\)") as raised:
        from_torchvision(NET, state(torchvision_names("alex"), "alex"), state(head_names(NET)))
    assert len(str(raised.value)) < 400


def test_without_a_file_there_is_no_lpips_and_the_error_says_how_to_make_one(tmp_path):
    with pytest.raises(WeightsError, match=r"absent.safetensors is not there, and LPIPS is defined by .*: make the file once from"):
        read_perceptual(tmp_path / "absent.safetensors")


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, path)
    with pytest.raises(WeightsError, match=r"holds no LPIPS weights of ours \(format None"):
        read_perceptual(path)
    write_arrays(path, from_lpips(NET, full_state()).variables, {"format": FORMAT, "net": "alex"})
    with pytest.raises(WeightsError, match="does not fit its own configuration"):
        read_perceptual(path)
