"""The network of SR3 and its blocks against those of diffusers, with the same weights: forward, and gradients by input and weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsr.models.sr3 import Sr3UNet
from jaxsr.nn.attention import PixelAttention
from jaxsr.nn.resnet import Downsample, ResnetBlock, Upsample

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.models.attention_processor import Attention, AttnProcessor  # noqa: E402
from diffusers.models.downsampling import Downsample2D  # noqa: E402
from diffusers.models.resnet import ResnetBlock2D  # noqa: E402
from diffusers.models.upsampling import Upsample2D  # noqa: E402

GROUPS, EMBEDDING = 4, 16

# ------------------------------------------------------------------------------------------------ weights from there to here


def array(parameter):
    return parameter.detach().numpy()


def conv(m, grad=False):
    """OIHW → HWIO."""
    weight, bias = (p.grad if grad else p for p in (m.weight, m.bias))
    return {"kernel": array(weight).transpose(2, 3, 1, 0), "bias": array(bias)}


def norm(m, grad=False):
    weight, bias = (p.grad if grad else p for p in (m.weight, m.bias))
    return {"scale": array(weight), "bias": array(bias)}


def dense(m, grad=False):
    """OI → IO."""
    weight, bias = (p.grad if grad else p for p in (m.weight, m.bias))
    return {"kernel": array(weight).T, "bias": array(bias)}


def pointwise(*linears, grad=False):
    """Linear layers side by side → one 1 × 1 convolution."""
    kernel = np.concatenate([array(m.weight.grad if grad else m.weight).T for m in linears], axis=1)
    bias = linears[0].bias
    result = {"kernel": kernel[None, None]}
    return result if bias is None else {**result, "bias": array(bias.grad if grad else bias)}


def resnet(m, grad=False):
    found = {
        "norm1": norm(m.norm1, grad),
        "conv1": conv(m.conv1, grad),
        "embedding": dense(m.time_emb_proj, grad),
        "norm2": norm(m.norm2, grad),
        "conv2": conv(m.conv2, grad),
    }
    return found if m.conv_shortcut is None else {**found, "skip": conv(m.conv_shortcut, grad)}


def attention(m, grad=False):
    return {
        "norm": norm(m.group_norm, grad),
        "qkv": pointwise(m.to_q, m.to_k, m.to_v, grad=grad),
        "out": pointwise(m.to_out[0], grad=grad),
    }


def resample(m, grad=False):
    return {"conv": conv(m.conv, grad)}


# ------------------------------------------------------------------------------------------------ blocks of theirs


def their_resnet(channels, features):
    return ResnetBlock2D(
        in_channels=channels,
        out_channels=features,
        temb_channels=EMBEDDING,
        groups=GROUPS,
        eps=1e-5,
        non_linearity="swish",
        skip_time_act=True,
    )


def their_attention(channels):
    return Attention(
        channels,
        heads=1,
        dim_head=channels,
        norm_num_groups=GROUPS,
        eps=1e-5,
        bias=False,
        residual_connection=True,
        processor=AttnProcessor(),
    )


def to_torch(x):
    """NHWC → NCHW, a leaf that takes gradients."""
    x = np.asarray(x)
    return torch.tensor(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x, requires_grad=True)


def from_torch(x):
    x = x.detach().numpy()
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def assert_close(ours, theirs):
    """Relative to the largest entry: 1e-4, in float32."""
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=1e-4)


def assert_same_function(ours, theirs, name_map, *inputs):
    """The same output, and the same gradients of Σ c · output (c fixed, random) by every input and every weight."""
    torch.manual_seed(0)
    for parameter in theirs.parameters():  # norms start at one and zero, which would hide a swap
        parameter.data = torch.randn_like(parameter) * (0.5 / np.sqrt(max(1, parameter[0].numel())))
    params = jax.tree.map(jnp.asarray, name_map(theirs))
    expected_shapes = nn.meta.unbox(jax.eval_shape(ours.init, jax.random.key(0), *inputs))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected_shapes)

    their_inputs = [to_torch(x) for x in inputs]
    their_output = theirs(*their_inputs)
    weights = np.random.default_rng(1).normal(size=from_torch(their_output).shape).astype(np.float32)
    (their_output * to_torch(weights)).sum().backward()

    @jax.jit
    def run(params, inputs):
        def total(params, inputs):
            output = ours.apply({"params": params}, *inputs)
            return (output * weights).sum(), output

        (_, output), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(params, inputs)
        return output, gradients

    output, (by_params, by_inputs) = run(params, inputs)
    assert_close(output, from_torch(their_output))
    for ours_, theirs_ in zip(by_inputs, their_inputs, strict=True):
        assert_close(ours_, from_torch(theirs_.grad))
    jax.tree.map(assert_close, by_params, name_map(theirs, grad=True))


def image(channels, side=8, batch=2, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, side, side, channels)).astype(np.float32)


EMBEDDED = np.random.default_rng(9).normal(size=(2, EMBEDDING)).astype(np.float32)


@pytest.mark.parametrize("channels, features", [(8, 8), (8, 16)])
def test_the_residual_block_is_diffusers(channels, features):
    assert_same_function(ResnetBlock(features, GROUPS), their_resnet(channels, features), resnet, image(channels), EMBEDDED)


def test_attention_is_diffusers():
    assert_same_function(PixelAttention(groups=GROUPS), their_attention(8), attention, image(8))


def test_halving_is_diffusers():
    assert_same_function(Downsample(), Downsample2D(8, use_conv=True), resample, image(8))


def test_doubling_is_diffusers():
    assert_same_function(Upsample(), Upsample2D(8, use_conv=True), resample, image(8))


WIDTH, MULTIPLIERS, BLOCKS, ATTENTION_AT = EMBEDDING, (1, 2, 2), 2, (4,)


class TheirUNet(torch.nn.Module):
    """SR3's network put together from diffusers' blocks, in the order of the paper's appendix; modules carry our names."""

    def __init__(self):
        super().__init__()
        self.level_in, self.level_out = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)
        self.stem = torch.nn.Conv2d(2, WIDTH, 3, padding=1)
        self.blocks = torch.nn.ModuleDict()
        channels, skips = WIDTH, [WIDTH]
        for level, multiplier in enumerate(MULTIPLIERS):
            for i in range(BLOCKS):
                self._block(f"down{level}_{i}", channels, WIDTH * multiplier, 2**level in ATTENTION_AT)
                channels = WIDTH * multiplier
                skips.append(channels)
            if level < len(MULTIPLIERS) - 1:
                self.blocks[f"down{level}_half"] = Downsample2D(channels, use_conv=True)
                skips.append(channels)
        self._block("middle_0", channels, channels, True)
        self._block("middle_1", channels, channels, False)
        for level, multiplier in reversed(list(enumerate(MULTIPLIERS))):
            for i in range(BLOCKS + 1):
                self._block(f"up{level}_{i}", channels + skips.pop(), WIDTH * multiplier, 2**level in ATTENTION_AT)
                channels = WIDTH * multiplier
            if level:
                self.blocks[f"up{level}_double"] = Upsample2D(channels, use_conv=True)
        self.norm, self.out = torch.nn.GroupNorm(GROUPS, channels, eps=1e-5), torch.nn.Conv2d(channels, 1, 3, padding=1)

    def _block(self, name, channels, features, attends):
        self.blocks[name] = their_resnet(channels, features)
        if attends:
            self.blocks[f"{name}_attention"] = their_attention(features)

    def forward(self, x_t, condition, embedded):
        embedding = self.level_out(torch.nn.functional.silu(self.level_in(embedded)))
        x = self.stem(torch.cat([condition, x_t], 1))
        skips = [x]
        for name, block in self.blocks.items():
            if name.startswith("up") and isinstance(block, ResnetBlock2D):
                x = torch.cat([x, skips.pop()], 1)
            x = block(x, embedding) if isinstance(block, ResnetBlock2D) else block(x)
            if name.startswith("down") and f"{name}_attention" not in self.blocks:
                skips.append(x)
        return self.out(torch.nn.functional.silu(self.norm(x)))


def whole(m, grad=False):
    maps = {ResnetBlock2D: resnet, Attention: attention, Downsample2D: resample, Upsample2D: resample}
    return {
        "level_in": dense(m.level_in, grad),
        "level_out": dense(m.level_out, grad),
        "stem": conv(m.stem, grad),
        **{name: maps[type(block)](block, grad) for name, block in m.blocks.items()},
        "norm": norm(m.norm, grad),
        "out": conv(m.out, grad),
    }


def test_the_whole_network_is_its_assembly_from_diffusers_blocks():
    theirs = TheirUNet()
    network = Sr3UNet(width=WIDTH, multipliers=MULTIPLIERS, blocks=BLOCKS, attention_at=ATTENTION_AT, groups=GROUPS)
    level = np.array([0.2, 0.97], np.float32)

    class Embedded(torch.nn.Module):
        """Told √ᾱ, like ours; the sines and cosines are in torch, so that their gradient is compared too."""

        def __init__(self):
            super().__init__()
            self.unet = theirs

        def forward(self, x_t, condition, level):
            frequencies = torch.exp(-np.log(1e4) * torch.arange(WIDTH // 2) / (WIDTH // 2))
            angle = level[:, None] * frequencies
            return self.unet(x_t, condition, torch.cat([angle.sin(), angle.cos()], 1))

    assert_same_function(network, Embedded(), lambda m, grad=False: whole(m.unet, grad), image(1, 16), image(1, 16, seed=1), level)
