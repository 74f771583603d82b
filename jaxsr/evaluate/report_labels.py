"""The report of label maps: a table a metric with a line a label, and the paragraph that says it in words. There are no pictures."""

import math
from collections.abc import Mapping
from typing import Any

from jaxsr.evaluate.report_tables import (
    BETTER,
    LEVEL,
    Table,
    cell_of,
    count,
    metrics_of,
    number,
    ranking,
    regions,
    shown_as,
    text_of,
    uneven_or_few,
)

MOST = "dice"  # the metric that the summary in words speaks of


def label_tables(document: Mapping[str, Any]) -> list[Table]:
    """A table for each metric: labels below one another, methods side by side; the best mean of each label is marked."""
    methods, tables = list(dict.fromkeys(row["method"] for row in document["rows"])), []
    for metric in metrics_of(document):
        found = {(s["region"], s["method"]): s for s in document["summary"] if s["metric"] == metric}
        lines = []
        for label in regions(document):
            ranked = ranking(document, label, metric)
            best = text_of(metric, ranked[0]["mean"]) if len(ranked) > 1 else None
            if any((label, method) in found for method in methods):
                lines.append((label, [cell_of(found.get((label, method)), best) for method in methods]))
        how = shown_as(metric)
        tables.append(Table(f"{how.heading}, {BETTER[how.better]}", [(method, "") for method in methods], lines, "label"))
    return tables


def label_sentences(document: Mapping[str, Any]) -> list[str]:
    """What was compared, whose mean Dice is best in how many labels, and in how many of them a test bears a difference out."""
    labels, methods = regions(document), list(dict.fromkeys(row["method"] for row in document["rows"]))
    subjects = len({row["subject"] for row in document["rows"]})
    where = f"on {count(subjects, 'subject')}, in {count(len(labels), 'label')}"
    said = [f"Segmentations of {count(len(methods), 'method')} were compared {where}."]
    best: dict[str, int] = {}
    for label in labels:
        ranked = ranking(document, label, MOST)
        top = [s["method"] for s in ranked if text_of(MOST, s["mean"]) == text_of(MOST, ranked[0]["mean"])]
        if len(ranked) > 1:
            best[top[0] if len(top) == 1 else ""] = best.get(top[0] if len(top) == 1 else "", 0) + 1
    if best:
        parts = [f"for {method} in {n}" for method, n in sorted(best.items(), key=lambda item: -item[1]) if method]
        parts += [f"for several alike in {best['']}"] if "" in best else []
        said.append(f"Mean {shown_as(MOST).title} is highest {', '.join(parts)} of {sum(best.values())} labels.")
    tests = [t for t in document["tests"] if t["metric"] == MOST and not math.isnan(number(t.get("p_holm")))]
    for method, against in dict.fromkeys((t["method"], t["against"]) for t in tests):
        sure = [t for t in tests if t["method"] == method and number(t["p_holm"]) < LEVEL]
        higher = sum(number(t.get("median_difference")) > 0 for t in sure)
        said.append(
            f"By the paired tests, {shown_as(MOST).title} is higher for {method} than for {against} in {higher} of {len(labels)} labels, "
            f"and lower in {len(sure) - higher} (p < {LEVEL})."
        )
    if tests and len(labels) > 1:
        said.append(
            "Holm's correction runs over methods, not over labels: of twenty labels that do not differ, one may be counted by chance."
        )
    return said + uneven_or_few(document)
