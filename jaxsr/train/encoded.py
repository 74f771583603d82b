"""Training on an encoded set (`jaxsr prepare --encode`): whether it suits the method."""

from collections.abc import Mapping

from jaxsr.config import ConfigError
from jaxsr.data.augmentation import AugmentConfig
from jaxsr.data.pipeline import augmentation_of
from jaxsr.data.prepared import PreparedSet
from jaxsr.experiment import Experiment

_AGAIN = "encode again with"
_WAYS = {  # what a set may lack
    "high": f"method.lambda_rec > 0 compares with them: {_AGAIN} --keep high, or set method.lambda_rec=0",
    "low": f"an image encoder that is trained sees them: {_AGAIN} --keep low, or leave it out, method.image_encoder=null",
    "pooled": f"{_AGAIN} --image-encoder FILE, or leave it out, method.image_encoder=null",
    "tokens": f"{_AGAIN} --image-encoder FILE --tokens patches, or set method.image_encoder.context=pooled and method.spatial=autoencoder",
}


def fitted_augment(experiment: Experiment, records: PreparedSet, wanted: Mapping[str, tuple[int, ...]]) -> AugmentConfig | None:
    """How the slices of an encoded set were varied; None where `records` are images.

    Args:
      wanted: `Method.encoded` of slices of `data.crop`.

    Raises:
      ConfigError: where the method does not learn from it, or the set has another crop, lacks something or has it of another shape.
    """
    data, encoding = experiment.data, records.manifest.encoding
    if encoding is None:
        return None
    where = f"the encoded set of data.manifest={data.manifest}"
    if not wanted:
        raise ConfigError(f"{where} holds latents, and method.kind={experiment.method.kind} learns from images: give the set before --encode")
    if data.crop != encoding.crop:
        raise ConfigError(
            f"data.crop is {data.crop}, and {where} was encoded in squares of {encoding.crop}: set data.crop={encoding.crop}, "
            f"or {_AGAIN} --crop {data.crop}"
        )
    if "augment" in data.model_fields_set and augmentation_of(data.augment) != encoding.augment:
        raise ConfigError(
            f"data.augment is {data.augment}, and slices of {where} were varied by {encoding.augment} when they were encoded: "
            f"leave it out, or {_AGAIN} another --augment"
        )
    if missing := [name for name in wanted if name not in records.manifest.maps]:
        raise ConfigError(*(f"{where} has no {name}: {_WAYS.get(name, 'make it again')}" for name in missing))
    for name, shape in wanted.items():
        if (found := getattr(encoding, name, shape)) != shape:
            sizes = " × ".join(map(str, found)), " × ".join(map(str, shape))
            raise ConfigError(
                f"{where} has {name} of {sizes[0]}, and the method takes {sizes[1]}: set the sizes of method.autoencoder.network and "
                f"method.image_encoder to those of the networks that it was encoded with, or {_AGAIN} others"
            )
    return encoding.augment
