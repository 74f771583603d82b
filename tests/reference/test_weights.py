"""Files that torch, lpips, transformers and diffusers wrote are read as they read them, without torch."""

import os
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsr.models.clip import VisionTransformer
from jaxsr.weights.deduced import unet_network
from jaxsr.weights.file import WeightsError
from jaxsr.weights.foreign import open_foreign
from jaxsr.weights.imported import import_weights, read_weights

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")

LAYOUTS = pytest.mark.parametrize("layout", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])


def read(path):
    with open_foreign([path]) as tensors:
        return {name: np.asarray(tensor) for name, tensor in tensors.items()}


def assert_same(found, tensors):
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.detach()
        np.testing.assert_array_equal(found[name], (expected.float() if expected.is_floating_point() else expected).numpy(), err_msg=name)


@LAYOUTS
def test_what_torch_saves_is_read_as_torch_reads_it(layout, tmp_path):
    """Views, transposed and strided, of shared storages; parameters; dtypes; empty tensors and scalars; within a checkpoint's settings."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    tensors = {
        "base": base,
        "transposed": base.t(),
        "row": base[3],
        "strided": base[1::2, ::3],
        "parameter": torch.nn.Parameter(torch.randn(4)),
        "expanded": torch.randn(3, 1).expand(3, 5),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "double": torch.randn(2).double().float().double(),
        "count": torch.tensor(7),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "truth": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }
    settings = {"epoch": 3, "loss": np.float64(0.5), "betas": (0.9, 0.999), "dtype": torch.float16, "shape": base.shape}
    torch.save({"state_dict": tensors, **settings, "optimizer": {"state": {0: {"step": torch.tensor(1)}}}}, tmp_path / "m.ckpt", **layout)
    assert_same(read(tmp_path / "m.ckpt"), tensors)


@LAYOUTS
def test_a_module_s_state_dictionary_is_read(layout, tmp_path):
    """With buffers, and the versions that torch keeps beside it."""
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Linear(3, 4))
    torch.save(module.state_dict(), tmp_path / "m.pt", **layout)
    assert_same(read(tmp_path / "m.pt"), module.state_dict())


@LAYOUTS
def test_a_whole_module_is_refused_by_the_class_that_it_wants(layout, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt", **layout)
    with pytest.raises(WeightsError, match=r"wants to call torch\.nn\.modules\.linear\.Linear"):
        read(tmp_path / "m.pt")


class Malicious:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@LAYOUTS
def test_what_torch_would_run_is_not_run(layout, tmp_path):
    torch.save({"w": torch.ones(2), "bad": Malicious(tmp_path / "trace")}, tmp_path / "m.pt", **layout)
    with pytest.raises(WeightsError, match=r"m\.pt wants to call posix\.system, which no weights need"):
        read(tmp_path / "m.pt")
    assert not (tmp_path / "trace").exists()
    torch.load(tmp_path / "m.pt", weights_only=False, pickle_module=pickle)
    assert (tmp_path / "trace").exists(), "it was harmless"


@pytest.mark.filterwarnings("ignore")
def test_torchscript_s_archives_are_read(tmp_path):
    """As OpenAI published CLIP: half precision, modules within modules."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.LayerNorm(4))).half()
    names = torch.nn.ModuleDict({"visual": module})
    names.forward = lambda x: names["visual"][0](x)
    torch.jit.trace(names, torch.zeros(1, 2).half()).save(str(tmp_path / "jit.pt"))
    assert_same(read(tmp_path / "jit.pt"), names.state_dict())


def test_the_heads_that_lpips_ships_are_read():
    """Real files, of the old layout."""
    lpips = pytest.importorskip("lpips")
    for net in ("alex", "vgg", "squeeze"):
        path = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
        assert_same(read(path), torch.load(path, map_location="cpu", weights_only=True))


def test_a_whole_clip_of_transformers_is_imported_and_sees_the_same(tmp_path):
    """Both towers saved in bfloat16: the text tower is left out, and counted."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vision = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "image_size": 12,
        "patch_size": 4,
    }
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)).bfloat16()
    clip.save_pretrained(tmp_path)
    out = tmp_path / "out.safetensors"
    left = import_weights("clip", [tmp_path / "model.safetensors"], out).left
    assert sum(left.values()) == sum(not name.startswith("vis") for name in clip.state_dict() if "position_ids" not in name)

    sizes, variables, _ = read_weights(out, "clip")
    image = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    network = VisionTransformer(**{name: size for name, size in sizes.items() if name != "side"})
    found = jax.jit(network.apply)(variables, image)
    expected = clip.float().eval().vision_model(pixel_values=torch.tensor(image.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(found.tokens, expected.last_hidden_state.detach().numpy(), atol=1e-4)
    pooled = clip.visual_projection(expected.pooler_output).detach().numpy()
    np.testing.assert_allclose(found.pooled, pooled, atol=1e-4 * np.abs(pooled).max())


def test_a_unet_of_diffusers_in_shards_is_imported_and_computes_the_same(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        in_channels=8,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=8,
    )
    unet.save_pretrained(tmp_path, max_shard_size="1MB")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    converted = import_weights("unet", [index], tmp_path / "out.safetensors")
    assert (converted.layout, converted.left) == ("diffusers", {})
    sizes, variables, _ = read_weights(tmp_path / "out.safetensors", "unet")
    rng = np.random.default_rng(0)
    x, context = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 8, 8, 8), (2, 3, 12)))
    found = jax.jit(unet_network(sizes).apply)(variables, x, np.array([3.0, 500.0], np.float32), context)
    expected = unet(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor([3, 500]), torch.tensor(context)).sample.detach().numpy()
    np.testing.assert_allclose(found, expected.transpose(0, 2, 3, 1), atol=1e-4 * np.abs(expected).max())
