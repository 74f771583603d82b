"""The layout `dhcp`: the structural pipeline's output of the developing Human Connectome Project.

ROOT/sub-CC00050XX01/ses-7201/anat/sub-CC00050XX01_ses-7201_[desc-restore_]T2w.nii.gz, …_desc-brain_mask, …_desc-drawem9_dseg
"""

from pathlib import Path

from jaxsr.data.layouts.base import Found, Wanted
from jaxsr.data.layouts.bids import Bids


class Dhcp:
    """As `bids`, with other defaults: the truth is the T2w, the better contrast of a newborn's brain, as it is before the bias field is
    removed (`high_in='desc-restore'`: after); labels are the nine tissues (drawem9), the mask desc-brain.
    """

    def find(self, root: Path, wanted: Wanted) -> Found:
        return Bids(("T2w", "T1w"), labels="drawem9").find(root, wanted)
