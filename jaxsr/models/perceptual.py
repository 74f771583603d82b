"""The networks of LPIPS: AlexNet, VGG-16 and SqueezeNet 1.1 as feature extractors, and the distance between their features
[Zhang et al., CVPR 2018, Eq. 1].

    d(x, y) = Σ_l 1/(H_l W_l) Σ_hw  w_l · (f̂_l(x) − f̂_l(y))²_hw,        f̂ = f / (|f| + 10⁻¹⁰) along the channels,

f_l being the activations after a rectifier, w_l ≥ 0 one weight a channel. Convolutions and pools are those of torchvision, for whose
weights and input scaling the w_l of LPIPS 0.1 were fitted; the classifiers on top are left out. Published sizes, and multiply-adds at
224 × 224:

    net        features of         after                              parameters   multiply-adds   least side
    alex       64 192 384 256 256  conv1 … conv5                       2,469,696         0.656 G           31
    vgg        64 128 256 512 512  conv1_2 2_2 3_3 4_3 5_3            14,714,688        15.347 G           16
    squeeze    64 128 256 384 384 512 512  conv1, fire3 5 6 7 8 9        722,496         0.263 G           17

The weights are published, and read by `jaxsr.weights.perceptual`; the initialisers here only give shapes. A distance between features of
a network that was not trained is not LPIPS.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsr.nn.convolution import conv

Net = Literal["alex", "vgg", "squeeze"]

NETS: tuple[Net, ...] = ("alex", "vgg", "squeeze")
CHANNELS: dict[Net, tuple[int, ...]] = {  # of the features compared
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}
LEAST_SIDE: dict[Net, int] = {"alex": 31, "vgg": 16, "squeeze": 17}  # pixels, so that the last features have one
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, for images in [−1, 1]
EPSILON = 1e-10


class AlexNet(nn.Module):
    """`[B, H, W, 3]`, scaled as ImageNet → the activations of its five convolutions `[B, h, w, C]` [Krizhevsky 2014, "one weird trick"]."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        x = conv1 = nn.relu(conv(64, 11, stride=4, padding=(2, 2), name="conv1")(x))
        x = conv2 = nn.relu(conv(192, 5, name="conv2")(_pool(x, 3)))
        x = conv3 = nn.relu(conv(384, name="conv3")(_pool(x, 3)))
        x = conv4 = nn.relu(conv(256, name="conv4")(x))
        return conv1, conv2, conv3, conv4, nn.relu(conv(256, name="conv5")(x))


class Vgg16(nn.Module):
    """`[B, H, W, 3]`, scaled as ImageNet → the last activations `[B, h, w, C]` of its five resolutions [Simonyan & Zisserman 2015, D].

    Attributes:
      levels: resolutions that are computed, the finest first; the layers of the others are left out.
      dtype: of computation; None: that of the input.
    """

    levels: int = 5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        features: list[Array] = []
        for level, (channels, depth) in enumerate(zip(CHANNELS["vgg"], (2, 2, 3, 3, 3), strict=True), start=1):
            if level > self.levels:
                break
            x = _pool(x, 2) if features else x
            for i in range(1, depth + 1):
                x = nn.relu(conv(channels, dtype=self.dtype, name=f"conv{level}_{i}")(x))
            features.append(x)
        return tuple(features)


class Fire(nn.Module):
    """Channels squeezed to `squeeze`, then expanded to `expand` by 1 × 1 and as many by 3 × 3 [Iandola et al. 2016, Fig. 1]."""

    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(conv(self.squeeze, 1, name="squeeze")(x))
        wide = [conv(self.expand, size, name=f"expand{size}x{size}")(x) for size in (1, 3)]
        return nn.relu(jnp.concatenate(wide, axis=-1))


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1: `[B, H, W, 3]`, scaled as ImageNet → seven activations `[B, h, w, C]` [Iandola et al. 2016; release 1.1]."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        x = conv1 = nn.relu(conv(64, stride=2, padding=(0, 0), name="conv1")(x))
        x = Fire(16, 64, name="fire2")(_pool(x, 3, whole=False))
        x = fire3 = Fire(16, 64, name="fire3")(x)
        x = Fire(32, 128, name="fire4")(_pool(x, 3, whole=False))
        x = fire5 = Fire(32, 128, name="fire5")(x)
        x = fire6 = Fire(48, 192, name="fire6")(_pool(x, 3, whole=False))
        x = fire7 = Fire(48, 192, name="fire7")(x)
        x = fire8 = Fire(64, 256, name="fire8")(x)
        return conv1, fire3, fire5, fire6, fire7, fire8, Fire(64, 256, name="fire9")(x)


BACKBONES: dict[Net, type[nn.Module]] = {"alex": AlexNet, "vgg": Vgg16, "squeeze": SqueezeNet}


class PerceptualDistance(nn.Module):
    """Two batches `[B, H, W, 1 or 3]` in [−1, 1] → w_l · (f̂_l(x) − f̂_l(y))², one map `[B, h, w]` a layer, float32 (or float64, if
    they are).

    One channel is repeated to three, as the networks know colour images only. `mean_distance` makes LPIPS of the maps, `distance_map` a
    picture. Its gradient exists everywhere, also where all features are zero.

    Attributes:
      net: the network whose features are compared.

    Raises:
      ValueError: for sides below `LEAST_SIDE`, or shapes that make no sense.
    """

    net: Net

    @nn.compact
    def __call__(self, x: Array, y: Array) -> tuple[Array, ...]:
        check_images(x.shape, y.shape, self.net)
        both = jnp.concatenate([x, y])
        both = jnp.broadcast_to(both.astype(jnp.promote_types(both.dtype, jnp.float32)), (*both.shape[:3], 3))
        features = BACKBONES[self.net](name="backbone")((both - jnp.array(SHIFT)) / jnp.array(SCALE))
        maps = []
        for layer, found in enumerate(features):
            of_x, of_y = jnp.split(unit_features(found), 2)  # [B, h, w, C]
            maps.append(conv(1, 1, bias=False, name=f"head{layer}")(jnp.square(of_x - of_y))[..., 0])
        return tuple(maps)


def perceptual_shapes(net: Net) -> Any:
    """Shapes and dtypes of the variables of `PerceptualDistance(net)`, a tree; nothing is allocated."""
    image = jax.ShapeDtypeStruct((1, LEAST_SIDE[net], LEAST_SIDE[net], 1), jnp.float32)
    return nn.meta.unbox(jax.eval_shape(PerceptualDistance(net).init, jax.random.key(0), image, image))


def mean_distance(maps: tuple[Array, ...], mask: Array | None = None) -> Array:
    """LPIPS `[B]`: each layer's map `[B, h, w]` averaged, or averaged over `mask` `[B, H, W]`, and summed over the layers.

    A mask of everything changes nothing; an empty one gives NaN.
    """
    if mask is None:
        return jnp.stack([found.mean((1, 2)) for found in maps]).sum(0)
    return summed_distance(maps, mask) / mask.sum((1, 2))


def summed_distance(maps: tuple[Array, ...], mask: Array) -> Array:
    """The sum over the image's pixels in `mask` `[B, H, W]` of every layer's map, whose pixels share the image evenly: `[B]`.

    A map's pixel counts by as much of its share as lies in the mask. Features see their surroundings: what lies outside the mask but near
    it still counts.
    """
    inside = mask.astype(jnp.float32)
    distance = jnp.zeros(len(mask))
    for found in maps:
        rows, columns = (_shares(n, m) for n, m in zip(mask.shape[1:], found.shape[1:], strict=True))
        distance += (jnp.einsum("ih,bhw,jw->bij", rows, inside, columns, precision="highest") * found).sum((1, 2))
    return distance


def distance_map(maps: tuple[Array, ...], shape: tuple[int, int]) -> Array:
    """Each layer's map brought to `shape` (H, W) by bilinear interpolation, and summed: `[B, H, W]`, as `spatial=True` of lpips."""
    return jnp.stack([jax.image.resize(found, (len(found), *shape), "bilinear") for found in maps]).sum(0)


def check_images(x: tuple[int, ...], y: tuple[int, ...], net: Net) -> None:
    """Raises ValueError unless the shapes `x` and `y` are one, `[B, H, W, 1 or 3]`, with sides that suffice for `net`."""
    if x != y:
        raise ValueError(f"images of one shape are compared, got {x} and {y}")
    if len(x) != 4 or x[-1] not in (1, 3):
        raise ValueError(f"LPIPS compares [B, H, W, C] of one channel or three, got the shape {x}")
    if min(x[1:3]) < LEAST_SIDE[net]:
        raise ValueError(f"LPIPS ({net}) needs at least {LEAST_SIDE[net]} pixels on every side, got {x[1]} × {x[2]}")


def unit_features(features: Array) -> Array:
    """f / (|f| + ε) along the channels; the inner `where` keeps the root's infinite slope at zero out of the gradient."""
    squared = jnp.square(features).sum(-1, keepdims=True)
    norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    return features / (norm + EPSILON)


def _pool(x: Array, size: int, *, whole: bool = True) -> Array:
    """The maximum over `size` × `size` every second pixel; unless `whole`, also over windows that reach past the end (`ceil_mode`)."""
    past = [(0, 0 if whole else (n - size) % 2) for n in x.shape[1:3]]
    return nn.max_pool(x, (size, size), (2, 2), padding=past)


def _shares(pixels: int, cells: int) -> np.ndarray:
    """`[cells, pixels]`: how much of each pixel lies in each of `cells` equal parts of the line."""
    edges = np.arange(cells + 1)[:, None] * pixels / cells
    start = np.arange(pixels)[None]
    return np.clip(np.minimum(edges[1:], start + 1) - np.maximum(edges[:-1], start), 0, None).astype(np.float32)
