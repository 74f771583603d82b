"""The layout `openneuro`: BIDS as it comes from OpenNeuro, often by DataLad, with links to contents that are not there yet."""

import re
from pathlib import Path

from jaxsr.data.layouts.base import Found, Problem, Wanted
from jaxsr.data.layouts.bids import Bids

_FIELD = re.compile(r"(?<![0-9A-Za-z])ses-[0-9A-Za-z]*?(\d+(?:p\d+)?)T(?![A-Za-z])")


class OpenNeuro:
    """As `bids`, and two remarks: how many files have to be fetched, and that sessions of several field strengths could be pairs.

    Where people were scanned at two fields, `high_in='ses-7T'` with `low_in='ses-3T'` makes pairs of them; or `acq-`, as the set has it.
    MP2RAGE's uniform image is the suffix UNIT1, or T1w with `acq-mp2rage` in older sets; its inversions (`inv-`) are no truths.
    """

    def find(self, root: Path, wanted: Wanted) -> Found:
        scans, problems = Bids().find(root, wanted)
        remarks = []
        absent = [problem for problem in problems if "datalad get" in problem.why]
        if absent:
            folders = sorted(
                {"/".join("*" if re.match("(sub|ses)-", p) else p for p in problem.path.split("/")[:-1]) for problem in absent}
            )
            remarks.append(
                f"{len(absent)} files are links to contents that were not fetched: in this folder run `datalad get {' '.join(folders[:4])}`"
            )
        fields = {m[0]: float(m[1].replace("p", ".")) for scan in scans for m in _FIELD.finditer(scan.files["high"].name)}
        if len(set(fields.values())) > 1 and not (wanted.high_in or wanted.low_in):
            low, *_, high = sorted(fields, key=lambda name: (fields[name], name))
            remarks.append(
                f"people were scanned at several fields, and all are truths: high_in={high} with low_in={low} would make pairs of them"
            )
        return Found(scans, sorted((*problems, *(Problem(".", text, "note") for text in remarks)), key=lambda p: (p.path, p.why)))
