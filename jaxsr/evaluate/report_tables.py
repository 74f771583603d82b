"""The numbers of a report: summaries with the best marked, tests, single subjects, and the paragraph that says it in words.

Read from metrics.json, where NaN is null and an infinite value the string 'inf'. Keys that an evaluation does not have (tests, intervals)
are missing from the tables, and the words say so.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxsr.evaluate.metrics import registry

LEVEL = 0.05  # of p after Holm's correction, below which a difference is called significant


class Shown(NamedTuple):
    """How a metric is written, and which way is better: 'higher', 'lower', 'zero' (a signed error) or '' where that is not known."""

    title: str
    unit: str
    better: str
    spec: str

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


# How each metric is written. Intensities have the unit of the file, which nobody knows.
METRICS = {
    name: Shown(metric.title, "" if metric.unit.startswith("intensity") else metric.unit, metric.better, metric.spec)
    for name, metric in registry.METRICS.items()
}
BETTER = {"higher": "higher is better", "lower": "lower is better", "zero": "nearer to zero is better", "": ""}
SPOKEN = ("psnr", "ssim", "lpips", "resolution")  # metrics that the summary in words speaks of


class Cell(NamedTuple):
    """One metric of one method over subjects, as text; `best` among the methods of its table."""

    mean: str
    median: str
    interval: str
    n: int
    best: bool


class Table(NamedTuple):
    """One region, or one metric of labels: `lines` are (what `of` says, cells in the order of `headings`), None where there is no value."""

    title: str
    headings: list[tuple[str, str]]  # with "higher is better" and the like
    lines: list[tuple[str, list[Cell | None]]]
    of: str = "method"


def number(value: Any) -> float:
    """What JSON holds as a float: null is NaN, 'inf' infinite."""
    return float("nan") if value is None else float(value)


def shown_as(metric: str) -> Shown:
    return METRICS.get(metric, Shown(metric, "", "", registry.PLAIN))


def text_of(metric: str, value: Any) -> str:
    value = number(value)
    return "–" if math.isnan(value) else f"{value:{shown_as(metric).spec}}".rstrip(".").replace("inf", "∞").replace("-", "−")


def p_text(value: Any) -> str:
    value = number(value)
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def regions(document: Mapping[str, Any]) -> list[str]:
    """The mask or foreground first, the whole image last."""
    return sorted(dict.fromkeys(row["region"] for row in document["rows"]), key=lambda region: region == "image")


def metrics_of(document: Mapping[str, Any]) -> list[str]:
    """In the order of the rows: whoever asked for them named the most important first."""
    return list(dict.fromkeys(metric for row in document["rows"] for metric in row["values"]))


def ranking(document: Mapping[str, Any], region: str, metric: str) -> list[Mapping[str, Any]]:
    """The summaries of `metric`, best mean first; without those that have none. Empty where it is not known which way is better."""
    sign = {"higher": -1.0, "lower": 1.0, "zero": 1.0}.get(shown_as(metric).better)
    found = [s for s in document["summary"] if (s["region"], s["metric"]) == (region, metric) and not math.isnan(number(s["mean"]))]

    def badness(summary: Mapping[str, Any]) -> float:
        mean = number(summary["mean"])
        return (sign or 0.0) * (abs(mean) if shown_as(metric).better == "zero" else mean)

    return sorted(found, key=badness) if sign else []


def summary_tables(document: Mapping[str, Any]) -> list[Table]:
    """A table for each region; the best mean of a metric is marked, and what is written like it."""
    metrics, tables = metrics_of(document), []
    for region in regions(document):
        found = {(s["method"], s["metric"]): s for s in document["summary"] if s["region"] == region}
        here = [m for m in metrics if any(metric == m for _, metric in found)]
        first = {m: text_of(m, ranked[0]["mean"]) for m in here if len(ranked := ranking(document, region, m)) > 1}
        methods = list(dict.fromkeys(method for method, _ in found))
        lines = [(method, [cell_of(found.get((method, m)), first.get(m)) for m in here]) for method in methods]
        tables.append(Table(f"region: {region}", [(shown_as(m).heading, BETTER[shown_as(m).better]) for m in here], lines))
    return tables


def cell_of(summary: Mapping[str, Any] | None, best: str | None) -> Cell | None:
    if summary is None:
        return None
    metric = summary["metric"]
    mean, sd, median, low, high = (text_of(metric, summary.get(key)) for key in ("mean", "sd", "median", "low", "high"))
    interval = "" if "–" in (low, high) else f"{low} to {high}"
    return Cell(mean if sd == "–" else f"{mean} ± {sd}", median, interval, summary["n"], mean == best)


def test_lines(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The paired tests as text, significant ones marked."""
    return [
        {
            "region": t["region"],
            "metric": shown_as(t["metric"]).heading,
            "pair": f"{t['method']} − {t['against']}",
            "n": t["n"],
            "difference": text_of(t["metric"], t.get("median_difference")),
            "p": p_text(t.get("p")),
            "p_holm": p_text(t.get("p_holm")),
            "significant": number(t.get("p_holm")) < LEVEL,
        }
        for t in document["tests"]
    ]


def summary_sentences(document: Mapping[str, Any], outputs: Sequence[str]) -> list[str]:
    """What was compared, and for each of SPOKEN which method is best, by how much, and whether a test bears it out.

    Args:
      outputs: the methods that are models' outputs; the others are interpolations.
    """
    region = regions(document)[0]
    methods = list(dict.fromkeys(row["method"] for row in document["rows"]))
    subjects = len({row["subject"] for row in document["rows"]})
    baselines = len([m for m in methods if m not in outputs])
    where = {"mask": "inside the mask", "foreground": "inside the head (the foreground of the target)"}.get(region, "over the whole image")
    compared = count(len(methods) - baselines, "method") + (" was" if len(methods) - baselines == 1 else " were")
    beside = f" beside {count(baselines, 'interpolation')} of the input" if baselines else ""
    said = [f"{compared} compared{beside} on {count(subjects, 'subject')}, {where}."]
    for metric in SPOKEN:
        said += _verdict(document, region, metric, outputs)
    return said + uneven_or_few(document)


def uneven_or_few(document: Mapping[str, Any]) -> list[str]:
    """What readers must know where methods were scored on different subjects, or on so few that no test can tell."""
    region, said = regions(document)[0], []
    methods = list(dict.fromkeys(row["method"] for row in document["rows"]))
    subjects = len({row["subject"] for row in document["rows"]})
    scored = {
        method: {row["subject"] for row in document["rows"] if (row["method"], row["region"]) == (method, region)} for method in methods
    }
    counts = sorted({len(names) for names in scored.values() if names})
    if len(counts) > 1:
        said.append(
            f"Not every method was scored on the same subjects (n = {counts[0]} to {counts[-1]}): their means are of different people."
        )
    if subjects < 6 and len(methods) > 1:
        said.append(
            f"With {count(subjects, 'subject')} no ranking is certain: the smallest two-sided p a paired Wilcoxon test can give is "
            f"{2.0 ** (1 - subjects):.4g}, before any correction."
        )
    return said


def _verdict(document: Mapping[str, Any], region: str, metric: str, outputs: Sequence[str]) -> list[str]:
    ranked = ranking(document, region, metric)
    if len(ranked) < 2:
        return []
    best, second = ranked[:2]
    how, spoken = shown_as(metric), lambda s: " ".join(part for part in (text_of(metric, s["mean"]), shown_as(metric).unit) if part)
    if spoken(best) == spoken(second):
        equal = [s["method"] for s in ranked if spoken(s) == spoken(best)]
        return [f"{_capital(how.title)} is equal, {spoken(best)} on average, for {', '.join(equal[:-1])} and {equal[-1]}."]
    cell = cell_of(best, None)
    assert cell
    interval = f", 95 % interval {cell.interval}" if cell.interval else ""
    mean = f"{cell.mean} {how.unit}".strip()
    most = "finest" if metric == "resolution" else "highest" if how.better == "higher" else "lowest"
    kind = "" if best["method"] in outputs else ", an interpolation"
    sentence = (
        f"{_capital(how.title)} is {most} for {best['method']}{kind}: {mean} "
        f"({'mean ± sd, ' if best['n'] > 1 else ''}n = {best['n']}{interval}), then {second['method']} with {spoken(second)}"
    )
    return [f"{sentence}; {_tested(document, region, metric, best['method'], second['method'])}."]


def _tested(document: Mapping[str, Any], region: str, metric: str, best: str, second: str) -> str:
    tests = [t for t in document["tests"] if (t["region"], t["metric"]) == (region, metric) and best in (t["method"], t["against"])]
    tests = [t for t in tests if not math.isnan(number(t.get("p_holm")))]
    if not tests:
        return "no test says whether that difference is more than chance"
    test = next((t for t in tests if second in (t["method"], t["against"])), tests[0])
    other = test["against"] if test["method"] == best else test["method"]
    untested = "" if other == second else f"no test compares it with {second}; "
    p = f"paired Wilcoxon test with Holm's correction, n = {test['n']}, p {_equals(p_text(test['p_holm']))}"
    if not number(test["p_holm"]) < LEVEL:
        return f"{untested}its difference from {other} is not significant ({p}), so it may be chance"
    gain = number(test.get("median_difference")) * (1 if test["method"] == best else -1)
    if gain * (1 if shown_as(metric).better == "higher" else -1) < 0:
        return f"{untested}but in the middle subject {other} is better, significantly ({p})"
    return f"{untested}its difference from {other} is significant ({p})"


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
