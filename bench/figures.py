"""Figures for a page that is one file: charts as inline SVG in the page's own colours, pictures as data URIs."""

import base64
import io
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from markupsafe import Markup, escape
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

KEPT_UP_TO = 48  # pixels: pictures of this size are kept to the bit
COLOUR_MAP = "viridis"  # monotonous in lightness, so it also works without colour
INK, FAINT, FIRST, SECOND = "#010101", "#020202", "#030303", "#040404"  # stand for the page's colours
PAGE_COLOURS = {INK: "var(--ink)", FAINT: "var(--line)", FIRST: "var(--first)", SECOND: "var(--second)"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mcbeit",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.formatter.limits": (-3, 5),
}
SUPERFLUOUS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"<metadata>.*?</metadata>",
        r"<defs>.*?</defs>",  # a style for the whole page, and clips that nothing needs
        r' clip-path="[^"]*"',
        r' id="[^"]*"',
        r" font-family: [^;]*;",
        r"<g/>\s*",
        r"\n\s*",
    )
]


class Curve(NamedTuple):
    """Measurements over the steps, and optionally a second series to compare them with."""

    title: str
    steps: Sequence[int]
    values: Sequence[float]
    name: str = ""
    other: Sequence[float] | None = None
    other_name: str = ""


def page_style() -> Markup:
    """The style sheet that all pages have in common."""
    return Markup(files("mcbeit.bench").joinpath("page.css").read_text(encoding="utf-8"))


def curve_chart(curve: Curve) -> Markup:
    """A small line chart."""
    with matplotlib.rc_context(STYLE):
        figure, axes = chart_axes(width=3.4, height=2.2)
        _line(axes, curve.steps, curve.values, label=curve.name, color=FIRST, linewidth=1.4)
        if curve.other is not None:
            _line(axes, curve.steps, curve.other, label=curve.other_name, color=SECOND, linewidth=1.2, linestyle="--")
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(curve.title)
        axes.set_xlabel("step")
        axes.margins(x=0.02)
        return chart_svg(figure, f"{curve.title} over the steps, last value {curve.values[-1]:.4g}")


def _line(axes: Axes, steps: Sequence[int], values: Sequence[float], **style: Any) -> None:
    """A line, also through one point."""
    is_point = len(steps) == 1
    axes.plot([steps[0] - 0.5, steps[0] + 0.5] if is_point else steps, [*values] * (1 + is_point), **style)


def code_use_chart(counts: Float[np.ndarray, " code"]) -> Markup:
    """The share of patches per code, the most frequent first, beside a codebook that is used evenly."""
    shares = 100 * np.sort(counts)[::-1] / max(counts.sum(), 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = chart_axes(width=4.6, height=2.2)
        axes.stairs(shares, np.arange(len(shares) + 1), fill=True, color=FIRST, alpha=0.85)
        axes.axhline(100 / len(shares), color=SECOND, linewidth=1.2, linestyle="--", label="all codes used alike")
        axes.legend(frameon=False, fontsize=8)
        axes.set_xlabel("codes, the most frequent first")
        axes.set_ylabel("% of patches")
        axes.set_xlim(0, len(shares))
        return chart_svg(figure, f"share of patches per code; the most frequent one has {shares[0]:.1f} %")


def chart_axes(*, width: float, height: float) -> tuple[Figure, Axes]:
    """An empty chart of so many inches; draw within `matplotlib.rc_context(STYLE)`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def chart_svg(figure: Figure, label: str) -> Markup:
    """The chart as an element of the page: no links, no ids, and fonts, sizes and colours by CSS."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for superfluous in SUPERFLUOUS:
        text = superfluous.sub("", text)
    width, height = figure.get_size_inches() * 72
    opening = f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}">'
    text = opening + text[text.index(">") + 1 :]
    for stand_in, colour in PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    return Markup(text)


def picture_uri(pixels: UInt8[np.ndarray, "height width 3"], size: int = 192) -> str:
    """A picture as data URI: small ones to the bit, large ones as JPEG of at most `size` pixels a side."""
    image = Image.fromarray(pixels)
    if max(image.size) <= KEPT_UP_TO:
        return _uri(image, "png", optimize=True)
    image.thumbnail((size, size))
    return _uri(image, "jpeg", quality=85)


def heat_uri(values: Float[np.ndarray, "rows columns"], *, low: float, high: float) -> str:
    """One pixel per value, coloured from `low` to `high`."""
    scaled = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    colours = colormaps[COLOUR_MAP](scaled, bytes=True)
    return _uri(Image.fromarray(np.ascontiguousarray(colours[..., :3])), "png")


def scale_uri() -> str:
    """The colours of `heat_uri`, from low on the left to high on the right."""
    return heat_uri(np.linspace(0.0, 1.0, 64)[None], low=0.0, high=1.0)


def _uri(image: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
