"""The recipes, by the `kind` that a config names. A new one is a file here and a line below."""

from jaxsr.methods.sr3 import Sr3Config

# With a second method, `kind` chooses:
#     MethodConfig = Annotated[Sr3Config | TeacherConfig, Field(discriminator="kind")]
MethodConfig = Sr3Config
