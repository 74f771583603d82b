"""Layouts: where data sets keep their files, and who they are of. A data set is one file here and one line in LAYOUTS."""

from pathlib import Path

from jaxsr.data.layouts.base import Found, Kind, Layout, Problem, Scan, Wanted
from jaxsr.data.layouts.bids import Bids
from jaxsr.data.layouts.brats import Brats
from jaxsr.data.layouts.dhcp import Dhcp
from jaxsr.data.layouts.fastmri import FastMri
from jaxsr.data.layouts.folder import Folder
from jaxsr.data.layouts.hcp import Hcp
from jaxsr.data.layouts.ixi import Ixi
from jaxsr.data.layouts.openneuro import OpenNeuro
from jaxsr.data.layouts.reading import read_bias, read_scan
from jaxsr.data.layouts.report import problems_report
from jaxsr.data.people import plain
from jaxsr.data.tables import read_pairs
from jaxsr.files import shown
from jaxsr.volume.errors import VolumeError

__all__ = ["LAYOUTS", "Found", "Kind", "Layout", "Problem", "Scan", "Wanted", "find", "problems_report", "read_bias", "read_scan"]

LAYOUTS: dict[str, Layout] = {
    "folder": Folder(),
    "bids": Bids(),
    "openneuro": OpenNeuro(),
    "hcp": Hcp(),
    "ixi": Ixi(),
    "fastmri": FastMri(),
    "dhcp": Dhcp(),
    "brats": Brats(),
}


def find(layout: str, root: Path, wanted: Wanted | None = None) -> Found:
    """All scans under `root`, and a problem for every file of a known kind that is in none.

    Raises:
      VolumeError: for an unknown layout, a `root` that is no folder, what the layout cannot be asked for, or a table that cannot be read.
    """
    if layout not in LAYOUTS:
        raise VolumeError(f"there is no layout {shown(layout)}: the layouts are {', '.join(LAYOUTS)}")
    wanted = wanted or Wanted()
    found = LAYOUTS[layout].find(root, wanted)
    return found if wanted.families is None else _by_family(found, wanted.families)


def _by_family(found: Found, path: Path) -> Found:
    """Members of a family count as one person; who is in no family is told."""
    families = read_pairs(path, ("subject", "participant", "participant_id", "person"), ("family", "family_id"))
    families = {plain(name).removeprefix("sub-"): family for name, family in families.items()}
    alone = sorted({scan.person for scan in found.scans if scan.person.removeprefix("sub-") not in families})
    scans = [
        scan._replace(person=f"family-{plain(family)}", own=scan.person)
        if (family := families.get(scan.person.removeprefix("sub-")))
        else scan
        for scan in found.scans
    ]
    notes = [Problem(person, f"is not in {shown(path.name)}: taken to have no relatives in the set", "note") for person in alone]
    return Found(scans, sorted((*found.problems, *notes), key=lambda p: (p.path, p.why)))
