"""Training on an encoded set (`jaxsr prepare --encode`): whether it suits the method."""

from collections.abc import Mapping

from jaxsr.config import ConfigError
from jaxsr.data.pipeline import augmentation_of
from jaxsr.data.records import Manifest
from jaxsr.experiment import Experiment

_AGAIN = "encode again with"
_LACKS = {  # what a set may lack, and the way out
    "high": f"images of the target, which method.lambda_rec > 0 needs: {_AGAIN} --keep high, or set method.lambda_rec=0",
    "low": f"low-resolution images, which an image encoder that is trained needs: {_AGAIN} --keep low, or set method.image_encoder=null",
    "pooled": f"pooled tokens of an image encoder: {_AGAIN} --image-encoder FILE, or set method.image_encoder=null",
    "tokens": (
        "tokens of all patches, which method.image_encoder.context=patches and method.spatial=vit need: "
        f"{_AGAIN} --image-encoder FILE --tokens patches, or set them to pooled and autoencoder"
    ),
}


def check_encoded(experiment: Experiment, manifest: Manifest, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ConfigError where the method does not learn from an encoded set, or that was cropped or varied otherwise than `data` says,
    lacks something, or has it of another shape.

    Args:
      wanted: `Method.encoded` of slices of `data.crop`.
    """
    data, encoding = experiment.data, manifest.encoding
    assert encoding
    where = f"the encoded set {data.manifest} (data.manifest)"
    if not wanted:
        kind = experiment.method.kind
        raise ConfigError(f"{where} holds latents, and method.kind={kind} learns from images: give the set that was encoded")
    if data.crop != encoding.crop:
        raise ConfigError(
            f"data.crop is {data.crop}, and {where} was encoded in squares of {encoding.crop}: set data.crop={encoding.crop}, "
            f"or {_AGAIN} --crop {data.crop}"
        )
    if "augment" in data.model_fields_set and augmentation_of(data.augment) != encoding.augment:
        settings = " ".join(f"{name}={str(value).lower()}" for name, value in encoding.augment)
        raise ConfigError(
            f"data.augment says otherwise than slices of {where} were varied when they were encoded ({settings}): leave it out, "
            f"or {_AGAIN} another --augment"
        )
    if missing := [name for name in wanted if name not in manifest.maps]:
        raise ConfigError(*(f"{where} has no {_LACKS.get(name, name)}" for name in missing))
    for name, shape in wanted.items():
        if (found := getattr(encoding, name, shape)) != shape:
            sizes = " × ".join(map(str, found)), " × ".join(map(str, shape))
            raise ConfigError(
                f"{where} has {name} of {sizes[0]}, and the method takes {sizes[1]}: set the sizes of method.autoencoder.network and "
                f"method.image_encoder to those of the networks that it was encoded with, or {_AGAIN} others"
            )
