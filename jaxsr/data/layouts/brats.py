"""The layout `brats`: a folder for each case, four contrasts and a segmentation, as named since 2020.

    BraTS20_Training_001/BraTS20_Training_001_t1.nii     also t1ce, t2, flair, seg         2020
    BraTS2021_00000/BraTS2021_00000_t1.nii.gz                                              2021
    BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz   also t1c, t2w, t2f, seg           2023 and later

In 2020 case 355's segmentation is called W39_1998.09.19_Segm.nii.
"""

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

from jaxsr.data.layouts.base import Found, Wanted
from jaxsr.data.layouts.tree import Account, look
from jaxsr.data.layouts.wants import no_low, word
from jaxsr.data.people import stem
from jaxsr.files import shown

_KINDS = {
    "t1": "t1", "t1n": "t1", "T1w": "t1", "t1ce": "t1ce", "t1c": "t1ce", "t1gd": "t1ce", "t2": "t2", "t2w": "t2",
    "flair": "flair", "t2f": "flair",
}  # fmt: skip
_NAME = re.compile(r"(?P<case>BraTS.*?)[-_](?P<kind>t1n|t1ce|t1c|t1|t2w|t2f|t2|flair|seg)", re.IGNORECASE)
_TIME_POINT = re.compile(r"(BraTS-[A-Z]+-\d+)-\d+")


class Brats:
    """BraTS: `wanted.high` (default t1) and `wanted.reference` are t1, t1ce, t2 or flair, or their newer names t1n, t1c, t2w, t2f.

    Labels are the segmentation, where there is one. Of `BraTS-GLI-00000-001` the person is `BraTS-GLI-00000`, as its time points are of one
    person; before 2023 each case is a person. The years share people under different names, so prepare one year by itself.
    """

    def find(self, root: Path, wanted: Wanted) -> Found:
        no_low(root, wanted, "BraTS", "all is resampled to 1 mm")
        high = word(root, "high", wanted.high, _KINDS) or "t1"
        reference = word(root, "reference", wanted.reference, _KINDS)
        account = Account(look(root))
        cases: dict[tuple[PurePosixPath, str], dict[str, PurePosixPath]] = defaultdict(dict)
        odd = []
        for path in account.files:
            name = _NAME.fullmatch(stem(path.name))
            if name:
                kind = name["kind"].lower()
                files = cases[path.parent, name["case"]]
                if (first := files.setdefault(_KINDS.get(kind, kind), path)) != path:
                    account.refuse(path, "duplicate", f"the same contrast as {shown(first.name)}, which was taken")
            elif path.parent.name.startswith("BraTS") and "segm" in path.name.lower():
                odd.append(path)
        for path in odd:
            if "seg" in cases[path.parent, path.parent.name]:
                account.refuse(path, "duplicate", "the case has a segmentation under its usual name, which was taken")
            else:
                cases[path.parent, path.parent.name]["seg"] = path
        for (_, case), files in cases.items():
            lacking = [kind for kind in (high, reference) if kind and kind not in files]
            if lacking:
                for path in files.values():
                    account.refuse(path, "partner", f"there is no {lacking[0]} of {shown(case)}")
                continue
            roles = {"high": high, "reference": reference, "labels": "seg"}
            time_point = _TIME_POINT.fullmatch(case)
            person = time_point[1] if time_point else case
            account.scan(case, person, {role: files[kind] for role, kind in roles.items() if kind in files})
        known = {path for files in cases.values() for path in files.values()}
        asked = f"neither {high} nor {reference}" if reference else f"not {high}"
        return account.found(lambda path: asked if path in known else "its name is none of BraTS, as in BraTS2021_00000_t1.nii.gz")
