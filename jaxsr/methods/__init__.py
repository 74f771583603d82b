"""The recipes, by the `kind` that a config names. A new one is a file here and a line below."""

from typing import Annotated

from pydantic import Field

from jaxsr.methods.anatomy import AnatomyConfig
from jaxsr.methods.autoencoder import AutoencoderConfig
from jaxsr.methods.consistency import ConsistencyConfig
from jaxsr.methods.moediff_config import MoediffConfig
from jaxsr.methods.spcdd_config import SpcddConfig
from jaxsr.methods.sr3 import Sr3Config
from jaxsr.methods.student import StudentConfig
from jaxsr.methods.teacher import TeacherConfig
from jaxsr.methods.vqvae import VqvaeConfig

MethodConfig = Annotated[
    AnatomyConfig
    | AutoencoderConfig
    | ConsistencyConfig
    | MoediffConfig
    | SpcddConfig
    | Sr3Config
    | StudentConfig
    | TeacherConfig
    | VqvaeConfig,
    Field(discriminator="kind"),
]
