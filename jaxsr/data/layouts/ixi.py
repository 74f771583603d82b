"""The layout `ixi`: `IXI002-Guys-0828-T1.nii.gz`, all in one folder or in those of the archives (IXI-T1/, IXI-T2/, IXI-PD/)."""

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

from jaxsr.data.layouts.base import Found, Wanted
from jaxsr.data.layouts.tree import Account, look
from jaxsr.data.layouts.wants import no_low, word
from jaxsr.data.people import stem
from jaxsr.files import shown

_NAME = re.compile(r"(IXI\d+)-([A-Za-z]+)-(\d+)-([A-Za-z0-9]+)(?:-\d+)?")
_CONTRASTS = {"T1": "T1", "T1w": "T1", "T2": "T2", "T2w": "T2", "PD": "PD", "PDw": "PD", "MRA": "MRA"}
_SITES = {"Guys": "Guys", "HH": "HH", "IOP": "IOP"}  # Guy's Hospital, 1.5 T; Hammersmith Hospital, 3 T; Institute of Psychiatry, 1.5 T


class Ixi:
    """IXI: `wanted.high` (default T1) and `wanted.reference` are T1, T2, PD or MRA; `wanted.high_in` is a site: Guys, HH (3 T) or IOP.

    The person is `IXI002`. Nobody was scanned twice, so there is no low side.
    """

    def find(self, root: Path, wanted: Wanted) -> Found:
        no_low(root, wanted, "IXI", "everybody was scanned once")
        high = word(root, "high", wanted.high, _CONTRASTS) or "T1"
        reference = word(root, "reference", wanted.reference, _CONTRASTS)
        site = word(root, "high_in", wanted.high_in, _SITES)
        account = Account(look(root))
        visits: dict[str, dict[str, PurePosixPath]] = defaultdict(dict)
        for path in account.files:
            name = _NAME.fullmatch(stem(path.name))
            if not name:
                continue
            if site and name[2] != site:
                account.refuse(path, "unused", f"of {shown(name[2])}, and {site} is wanted")
            elif name[4] in (high, reference):
                visit = visits[f"{name[1]}-{name[2]}-{name[3]}"]
                if name[4] in visit:
                    account.refuse(path, "duplicate", f"{shown(visit[name[4]])} has the same name, and was taken")
                else:
                    visit[name[4]] = path
        for visit_name, files in visits.items():
            person = visit_name.split("-")[0]
            lacking = [contrast for contrast in (high, reference) if contrast and contrast not in files]
            if lacking:
                for path in files.values():
                    account.refuse(path, "partner", f"there is no {lacking[0]} of {visit_name}")
            else:
                pair = {"high": files[high]} | ({"reference": files[reference]} if reference else {})
                account.scan(f"{visit_name}-{high}", person, pair)
        asked = f"neither {high} nor {reference}" if reference else f"not {high}"
        return account.found(
            lambda path: asked if _NAME.fullmatch(stem(path.name)) else "its name is none of IXI, as in IXI002-Guys-0828-T1.nii.gz"
        )
