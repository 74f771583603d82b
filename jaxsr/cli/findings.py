"""What an evaluation found, in words; and which metrics there are."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxsr.evaluate.tables import Comparison


def list_metrics() -> None:
    """A line for each metric of an image and its reference."""
    from jaxsr.evaluate.lpips_weights import NAME, OPTION
    from jaxsr.evaluate.metrics.registry import METRICS
    from jaxsr.evaluate.scores import DEFAULT, KNOWN

    better = {"higher": "higher is better", "lower": "lower is better", "zero": "nearer to zero is better"}
    for name in KNOWN:
        metric = METRICS[name]
        unit = f", {metric.unit}" if metric.unit else ""
        least = f", {metric.least} voxels a side or more" if metric.least > 1 else ""
        more = " (default)" if name in DEFAULT else f", needs {OPTION}" if name == NAME else ""
        print(f"{name:<22}{metric.title}{unit}: {better[metric.better]}{least}{more}")


def significant(comparison: "Comparison") -> list[str]:
    """For the mask or foreground, a sentence a method: what it differs in. None where no difference could be significant.

    Of label maps a sentence a method and metric: in which labels.
    """
    if comparison.labels:
        return _by_label(comparison)
    tests = [t for t in comparison.tests if t.region == comparison.tests[0].region and t.p_holm == t.p_holm]
    if not tests or any(note.startswith(f"{tests[0].region}: ") for note in comparison.all_notes):
        return []
    said = []
    for method in dict.fromkeys(t.method for t in tests):
        mine = [t for t in tests if t.method == method]
        differs = ", ".join(t.metric for t in mine if t.p_holm < 0.05) or "no metric"
        said.append(f"{method} differs from {mine[0].against} ({mine[0].region}, Holm p < 0.05, n = {mine[0].n}) in {differs}")
    return said


def _by_label(comparison: "Comparison") -> list[str]:
    from jaxsr.evaluate.tables import listed

    tests = [t for t in comparison.tests if t.p_holm == t.p_holm]
    said = []
    for method, metric in dict.fromkeys((t.method, t.metric) for t in tests):
        mine = [t for t in tests if (t.method, t.metric) == (method, metric)]
        differs = [t.region for t in mine if t.p_holm < 0.05]
        where = "in none" if not differs else "in all" if len(differs) == len(mine) else f"in {len(differs)}"
        which = f": {listed(differs)}" if 0 < len(differs) < len(mine) else ""
        said.append(f"{method} differs from {mine[0].against} in {metric} (Holm p < 0.05) {where} of {len(mine)} labels{which}")
    return said
