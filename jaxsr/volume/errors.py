"""What goes wrong with a volume, said to its owner."""


class VolumeError(ValueError):
    """A volume that cannot be used: one sentence that names the file, what was found, what was expected and the way out."""
