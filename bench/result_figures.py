"""Charts of results: bars with their intervals, curves, and tables of confusion."""

from collections.abc import Sequence
from itertools import cycle
from textwrap import wrap
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup

from mcbeit.bench.figures import FIRST, INK, SECOND, STYLE, chart_axes, chart_svg, heat_uri
from mcbeit.bench.result import Curve, Metric

BAR_HEIGHT = 0.3  # inches
WIDTH = 6.4
MARGIN = 0.7
LINE_STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "linestyle": line} for line in ("-", "--", ":") for colour in (FIRST, SECOND)
)
MAX_NAME = 44  # characters of a model's name beside a bar
TITLE_LENGTH = 44  # characters of a line above a chart


class Bar(NamedTuple):
    """A model and its number."""

    name: str
    metric: Metric


def bar_chart(title: str, bars: Sequence[Bar]) -> Markup:
    """Horizontal bars in percent with 95 % intervals, the first model on top."""
    values = [100 * bar.metric.value for bar in bars]
    with matplotlib.rc_context(STYLE):
        figure, axes = chart_axes(width=WIDTH, height=MARGIN + BAR_HEIGHT * len(bars))
        places = np.arange(len(bars))[::-1]
        axes.barh(places, values, height=0.62, color=FIRST, alpha=0.85)
        for place, bar, value in zip(places, bars, values, strict=True):
            if bar.metric.interval is not None:
                low, high = (100 * bound for bound in bar.metric.interval)
                axes.plot([low, high], [place, place], color=INK, linewidth=1.1, solid_capstyle="butt")
                for end in (low, high):
                    axes.plot([end, end], [place - 0.12, place + 0.12], color=INK, linewidth=1.1)
            axes.annotate(
                f"{value:.1f}", (0, place), xytext=(4, 0), textcoords="offset points", va="center", color="white"
            )
        axes.set_yticks(places, [_short(bar.name) for bar in bars])
        axes.set_xlim(0, min(100, 1.12 * max(values) + 1))
        axes.set_title("\n".join(wrap(title, TITLE_LENGTH)))
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        best = max(bars, key=lambda bar: bar.metric.value)
        return chart_svg(figure, f"{title}, percent; the highest is {best.name} with {100 * best.metric.value:.2f}")


def metric_chart(curve: Curve) -> Markup:
    """Lines in percent, the highest point marked; x is drawn to its logarithm if it spans more than a hundredfold."""
    with matplotlib.rc_context(STYLE):
        figure, axes = chart_axes(width=3.4, height=2.2 + 0.16 * (len(curve.lines) - 1))
        for (name, values), style in zip(curve.lines.items(), cycle(LINE_STYLES), strict=False):
            y = [100 * value for value in values]
            axes.plot(curve.x, y, label=name, linewidth=1.3, **style)
        if min(curve.x) > 0 and max(curve.x) / min(curve.x) > 100:
            axes.set_xscale("log")
        best, (place, name) = max(
            (value, (x, name)) for name, values in curve.lines.items() for x, value in zip(curve.x, values, strict=True)
        )
        axes.annotate(f"{100 * best:.1f}", (place, 100 * best), xytext=(0, 3), textcoords="offset points", ha="center")
        axes.margins(y=0.12)
        if len(curve.lines) > 1:
            figure.legend(
                *axes.get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=7, ncols=2
            )
        axes.set_title(curve.title)
        axes.set_xlabel(curve.x_label)
        axes.set_ylabel("%")
        axes.margins(x=0.04)
        where = f"{curve.x_label} {place:g}{f', {name}' if name else ''}"
        return chart_svg(figure, f"{curve.title}: the highest is {100 * best:.2f} % at {where}")


def confusion_uri(counts: Sequence[Sequence[int]]) -> str:
    """A picture of one pixel per pair of classes: the share of each class that was taken for each."""
    values = np.array(counts, np.float64)
    shares = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    return heat_uri(shares, low=0.0, high=1.0)


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME // 2 - 1]}…{name[-MAX_NAME // 2 :]}"
