"""The perceptual loss: squared error of VGG-16's features [MoEDiff-SR, Eq. 10, second term; Johnson et al., ECCV 2016, Eq. 2].

    mean (Φ(x) − Φ(y))²                         Φ: the activations relu3_3, 256 at a quarter of the resolution

The paper names the network, not the layer. Of latents of 32 × 32 relu3_3 has 8 × 8 values a feature, and each has seen 40 × 40 pixels, so
all there are: the expert that has this loss is there for 'global structural coherence'. relu2_2 sees 14 pixels; relu4_3 would be 4 × 4.

Φ was trained on photographs: three channels, shifted and scaled by ImageNet's mean and deviation. There are two ways from a slice to them:

    vgg_latent     its latents in a fixed projection, z P with P `[C, 3]`, PᵀP = 1: 'applied directly in latent space'
    vgg_image      its grey image, three times, scaled as for LPIPS (`jaxsr.models.perceptual`)

Latents that are diffused have a deviation of about one, and P makes of uncorrelated ones three that are the same: what Φ expects, so they
are not scaled.

The weights are published (`jaxsr weights import vgg16`). With others this is a distance between random features.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsr.losses.pixels import squared_errors
from jaxsr.models.perceptual import SCALE, SHIFT, Vgg16

LEVELS = 3  # resolutions of VGG-16, of which Φ is the end
LEAST_SIDE = 2 ** (LEVELS - 1)  # pixels, so that there is one of the last
SEED = 0  # of P: whoever changes it changes the loss


def vgg_latent_errors(variables: Any, x: Array, y: Array, dtype: Any = None) -> Array:
    """The loss of latents x against those of the target y, `[B, h, w, C]` both, of a deviation of about 1: `[B]`, float32.

    Args:
      variables: `params` as of `vgg_shapes`.
      dtype: of the features' computation; None: float32.

    Raises:
      ValueError: for sides below 4.
    """
    return _errors(variables, _three_channels(x), _three_channels(y), dtype)


def vgg_image_errors(variables: Any, x: Array, y: Array, dtype: Any = None) -> Array:
    """The loss of images x against the target's y, `[B, H, W, 1]` both, in −1…1: `[B]`, float32. Arguments as `vgg_latent_errors`."""
    x, y = ((jnp.broadcast_to(image, (*image.shape[:3], 3)) - jnp.array(SHIFT)) / jnp.array(SCALE) for image in (x, y))
    return _errors(variables, x, y, dtype)


def vgg_shapes() -> Any:
    """Shapes of Φ's parameters, 1,735,488 in all, boxed with the names of their dimensions, for `Method.frozen`; nothing is allocated."""
    image = jax.ShapeDtypeStruct((1, LEAST_SIDE, LEAST_SIDE, 3), jnp.float32)
    return jax.eval_shape(Vgg16(LEVELS).init, jax.random.key(0), image)["params"]


def projection(channels: int) -> np.ndarray:
    """P, `[channels, 3]` with orthonormal columns, float32: of a Gaussian matrix, so of no direction in particular, by QR with a positive
    diagonal of R, which makes it unique. NumPy keeps this generator's numbers as they are for good."""
    q, r = np.linalg.qr(np.random.RandomState(SEED).standard_normal((channels, 3)))
    return (q * np.sign(np.diag(r))).astype(np.float32)


def _errors(variables: Any, x: Array, y: Array, dtype: Any) -> Array:
    """One after the other: of one batch, the gradient by `y` would be computed too, which nobody needs of a target."""
    if min(x.shape[1:3]) < LEAST_SIDE:
        raise ValueError(f"VGG-16's features up to relu3_3 need {LEAST_SIDE} pixels on every side, got {x.shape[1]} × {x.shape[2]}")
    network = Vgg16(LEVELS, dtype)
    of_x, of_y = (jnp.asarray(network.apply(variables, z)[-1]) for z in (x, y))  # [B, h / 4, w / 4, 256]
    return squared_errors(of_x, of_y)


def _three_channels(latents: Array) -> Array:
    """`[B, h, w, C]` → `[B, h, w, 3]`; fewer channels than three are taken in turn, as often as it needs."""
    latents, channels = latents.astype(jnp.float32), latents.shape[-1]
    if channels < 3:
        return latents[..., np.arange(3) % channels]
    return jnp.einsum("bhwc,cd->bhwd", latents, projection(channels), precision="highest")
