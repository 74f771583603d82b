"""Figures of a report: montages as WebP without loss, box plots and shell correlations as SVG that follow the page's colours.

matplotlib knows no CSS, so lines are drawn in colours that occur nowhere else and replaced by the page's variables. Nothing in a figure
depends on when or where it was drawn.
"""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import imsave

from jaxsr.evaluate.interpolation import INTERPOLATIONS
from jaxsr.evaluate.montage import DPI
from jaxsr.evaluate.report_tables import number, shown_as, text_of

COLOURS = 8  # of curves, --c0 … --c7 in the page
RESOLVED = 0.5  # the Fourier shell correlation down to which a size is called resolved

_INK, _FAINT, _ACCENT = "#010203", "#040506", "#070809"
_CURVE = "#0a0b0{}"
_DASHES = ((0, (1, 1)), (0, (3, 1.5)), (0, (6, 2)), (0, (6, 1.5, 1, 1.5)))  # one an interpolation
_VARIABLES = {_INK: "currentColor", _FAINT: "var(--faint)", _ACCENT: "var(--accent)"} | {
    _CURVE.format(i): f"var(--c{i})" for i in range(COLOURS)
}


def data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def webp(pixels: np.ndarray) -> bytes:
    """uint8 `[rows, columns]` or `[rows, columns, 3]` as WebP without loss, about half as large as PNG."""
    pixels = np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels
    stream = io.BytesIO()
    imsave(stream, np.ascontiguousarray(pixels), format="webp", pil_kwargs={"lossless": True, "quality": 20, "method": 2})
    return stream.getvalue()


def figure_uri(figure: Figure) -> str:
    """A drawn montage, to be shown."""
    figure.set_dpi(DPI)
    figure.canvas.draw()  # type: ignore[no-untyped-call]
    return data_uri(webp(np.asarray(figure.canvas.buffer_rgba())[..., :3]), "webp")  # type: ignore[attr-defined]


def box_plot(rows: Sequence[Mapping[str, Any]], metric: str) -> Markup:
    """A box a method (quartiles and median; whiskers to the last value within 1.5 boxes) and every subject as a point."""
    groups: dict[str, dict[str, float]] = {}
    for row in rows:
        value = number(row["values"].get(metric))
        if np.isfinite(value):
            groups.setdefault(row["method"], {})[row["subject"]] = value
    if not groups:
        return Markup("")
    subjects = list(dict.fromkeys(subject for values in groups.values() for subject in values))
    figure, axes = _axes(max(3.2, 1.2 + 0.6 * len(groups)), 3.4)
    lines = {name: {"color": _INK, "linewidth": 1.2} for name in ("boxprops", "whiskerprops", "capprops")}
    places = np.arange(len(groups))
    axes.boxplot(
        [list(values.values()) for values in groups.values()],
        positions=places,
        widths=0.55,
        showfliers=False,
        medianprops={"color": _INK, "linewidth": 2.2},
        **lines,  # type: ignore[arg-type]
    )
    titles = {}
    beside = np.linspace(-0.16, 0.16, len(subjects)) if len(subjects) > 1 else [0.0]
    for place, (method, values) in zip(places, groups.items(), strict=True):
        for i, subject in enumerate(subjects):
            if subject in values:
                name = f"{metric}-{place}-{i}"
                axes.plot(place + beside[i], values[subject], "o", color=_ACCENT, markersize=4.5, alpha=0.75, gid=name)
                titles[name] = f"{subject}, {method}: {text_of(metric, values[subject])} {shown_as(metric).unit}".strip()
    axes.set_xticks(places, list(groups), rotation=30, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_ylabel(shown_as(metric).heading)
    return _svg(figure, f"Box plot of {shown_as(metric).heading} for each method, a point a subject", metric, titles)


def label_boxes(rows: Sequence[Mapping[str, Any]], metric: str) -> Markup:
    """Labels below one another, in each a box a method, in its colour, and every subject as a point."""
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        value = number(row["values"].get(metric))
        if np.isfinite(value):
            groups.setdefault(row["region"], {}).setdefault(row["method"], {})[row["subject"]] = value
    if not groups:
        return Markup("")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    height = len(methods) + 0.8  # of a label, in boxes
    figure, axes = _axes(6.2, 1.2 + 0.2 * height * len(groups))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=_FAINT, linewidth=0.5, alpha=0.5)
    titles = {}
    for i, (label, found) in enumerate(groups.items()):
        for method, values in found.items():
            j = methods.index(method)
            place, colour = i * height + j, _CURVE.format(j % COLOURS)
            line = {"color": colour, "linewidth": 1.2}
            axes.boxplot(
                [list(values.values())],
                positions=[place],
                widths=0.7,
                orientation="horizontal",
                showfliers=False,
                medianprops={"color": colour, "linewidth": 2.4},
                boxprops=line,
                whiskerprops=line,
                capprops=line,
            )
            for k, (subject, value) in enumerate(values.items()):
                name = f"{metric}-{i}-{j}-{k}"
                axes.plot(value, place, "o", color=colour, markersize=3, alpha=0.6, gid=name)
                titles[name] = f"{subject}, {method}, {label}: {text_of(metric, value)} {shown_as(metric).unit}".strip()
    axes.set_yticks([i * height + (len(methods) - 1) / 2 for i in range(len(groups))], list(groups), parse_math=False)
    axes.set_ylim(len(groups) * height - 0.4, -1)
    axes.set_xlabel(shown_as(metric).heading)
    for j, method in enumerate(methods):
        axes.plot([], [], color=_CURVE.format(j % COLOURS), linewidth=2.4, label=method)
    legend = axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, labelcolor=_INK, fontsize=10)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _svg(figure, f"Box plots of {shown_as(metric).heading} for each label and method, a point a subject", metric, titles)


def shell_curves(curves: Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]]) -> Markup:
    """Fourier shell correlation against spatial frequency: thin lines are subjects, thick ones their mean if all have the same shells.

    Interpolations are broken lines without colour, behind the methods.
    """
    figure, axes = _axes(7.0, 3.6)
    methods = list(dict.fromkeys(method for subject in curves.values() for method in subject))
    own = [method for method in methods if method not in INTERPOLATIONS]
    for method in methods:
        lines = [
            tuple(np.array([number(v) for v in one[method][key]]) for key in ("frequency", "correlation"))
            for one in curves.values()
            if method in one
        ]
        style: dict[str, Any]
        if method in own:
            i = own.index(method)
            style = {"color": _CURVE.format(i % COLOURS), "linestyle": "-" if i < COLOURS else "--"}
        else:
            style = {"color": _FAINT, "linestyle": _DASHES[list(INTERPOLATIONS).index(method)]}
        same = all(np.array_equal(f, lines[0][0]) for f, _ in lines)
        if same:
            width = 2.2 if method in own else 1.4
            axes.plot(lines[0][0], np.mean([c for _, c in lines], axis=0), linewidth=width, label=method, **style)
        for j, (f, c) in enumerate(lines if method in own or not same else []):
            axes.plot(f, c, linewidth=0.8, alpha=0.4, label=None if same or j else method, **style)
    axes.axhline(RESOLVED, color=_INK, linewidth=1, linestyle=":")
    axes.set_xlabel("spatial frequency (cycles per mm)")
    axes.set_ylabel("correlation with the target")
    axes.set_ylim(min(-0.05, axes.get_ylim()[0]), 1.02)
    axes.set_xlim(left=0)
    legend = axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), labelcolor=_INK, fontsize=10)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _svg(figure, "Fourier shell correlation of each method with the target; dotted: one half", "fsc", {})


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="tight")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_edgecolor(_INK)
    axes.tick_params(colors=_INK, labelsize=10)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.grid(axis="y", color=_FAINT, linewidth=0.5, alpha=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, title: str, name: str, titles: Mapping[str, str]) -> Markup:
    """Inline SVG: text as text, colours as the page's variables, `titles` (group → words) for who points at a mark."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"jaxsr-{name}", "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    for group, words in titles.items():
        text = text.replace(f'<g id="{group}">', f'<g id="{group}"><title>{html.escape(words)}</title>')
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)  # there are several figures on the page
    opening = f'<svg role="img" aria-label="{html.escape(title)}"'
    return Markup(text.replace("<svg", opening, 1))
