"""Charts of a page, drawn by matplotlib as inline SVG that takes its colours and its font from the page."""

import io
import math
import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from markupsafe import Markup, escape
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

BINS = 48
"""Intervals of a histogram, where its scores are not whole numbers."""
VARIABLES = {f"#00000{i}": name for i, name in enumerate(("ink", "soft", "line", "accent", "warn", "paper"))}
"""The variable of the page that a colour is in the SVG, so that a chart is right in light and in dark mode."""
INK, SOFT, LINE, ACCENT, WARN, PAPER = VARIABLES
# The font comes with matplotlib, so that a text has the same place on every machine.
STYLE = (
    {"font.family": "DejaVu Sans", "font.size": 11, "grid.color": LINE, "hatch.linewidth": 1.2, "ytick.major.size": 0}
    | {"axes.axisbelow": True, "axes.grid": True, "axes.grid.axis": "y"}
    | dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top", "text.parse_math"), False)
    | dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), SOFT)
    | dict.fromkeys(("axes.facecolor", "figure.facecolor", "svg.fonttype"), "none")
)


def chart(label: str, width: int, height: int, draw: Callable[[Axes], object]) -> Markup:
    """An SVG of what `draw` draws on empty axes; equal charts are equal bytes.

    The label, which a screen reader says, differs from those of the other charts of a page; the size is in CSS pixels.
    """
    with style.context(("default", STYLE | {"svg.hashsalt": label})):
        figure, drawn = Figure((width / 72, height / 72)), io.StringIO()
        axes = figure.add_axes((64 / width, 44 / height, 1 - 128 / width, 1 - 64 / height))
        # Titles of vertical axes stand in one column, whatever the numbers beside them.
        axes.yaxis.set_label_coords(50 / (128 - width), 0.5)
        draw(axes)
        FigureCanvasSVG(figure).print_svg(drawn, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    # The document's head and its style, which would hold for the whole page, go; names of groups are not unique.
    _, svg = re.sub(r" <defs>\s*<style.*?</defs>\n", "", drawn.getvalue(), flags=re.DOTALL).split("<svg", 1)
    svg = re.sub(r' width="\S+pt" height="\S+pt"', f' width="{width}"', svg).replace("<g id=", "<g class=")
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", svg)
    svg = re.sub("|".join(VARIABLES), lambda found: f"var(--{VARIABLES[found[0]]})", svg)
    return Markup(f'<svg role="img" aria-label="{escape(label)}" style="max-width: 100%; stroke-linejoin: round"{svg}')


def histogram(
    label: str,
    score: str,
    unit: str,
    values: Float32[np.ndarray, " k"],
    failing: Bool[np.ndarray, " k"],
    low: float,
    high: float,
) -> Markup:
    """The passing and, hatched, the failing scores of a rule, between its limits; heights are logarithms of counts."""
    edges, passed, failed, limits = bins(values, failing, low, high)
    most = int(max(passed.max(), failed.max()))
    steps = (1, 3) if most < 1000 else (1,)
    # Where equal scores or decisions make an interval hold both, they share its width.
    widths = np.diff(edges) / np.where((passed > 0) & (failed > 0), 2, 1)

    def draw(axes: Axes) -> None:
        # An edge of the colour of the page parts the bars.
        passing, fails = (edges[:-1], passed, ACCENT, PAPER, ""), (edges[1:] - widths, failed, "none", WARN, "//////")
        for left, counts, color, edge, hatch in (passing, fails):
            drawn = counts > 0
            places = left[drawn], counts[drawn], widths[drawn]
            axes.bar(*places, align="edge", color=color, edgecolor=edge, linewidth=0.7, hatch=hatch)
        for name, limit, x, side in zip(("min", "max"), (low, high), limits, ("right", "left"), strict=True):
            if math.isfinite(limit):
                axes.axvline(x, color=WARN, linestyle=(0, (3, 2)))
                # The text is on the side that fails, so that two limits never write over each other.
                place = {"xytext": (0, 4), "textcoords": "offset points", "xycoords": axes.get_xaxis_transform()}
                axes.annotate(f"{name} {limit:.4g}", (x, 1), ha=side, color=WARN, weight="bold", **place)
        axes.set_yscale("function", functions=(np.log1p, np.expm1))
        axes.set_yticks([0, *(m * 10**k for k in range(10) for m in steps if m * 10**k <= most)])
        axes.yaxis.set_major_formatter("{x:,.0f}")
        # Whole numbers lie between edges that are not, and have no ticks between them.
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=bool((edges % 1 == 0.5).all()), steps=[1, 2, 5, 10]))
        axes.set(xlim=edges[[0, -1]], ylim=(0, 1.1 * most), xlabel=score, ylabel=f"{unit} (log scale)")

    return chart(f"{label}: {failed.sum()} of {len(values)} {unit} fail", 720, 176, draw)


def bins(
    values: Float32[np.ndarray, " k"], failing: Bool[np.ndarray, " k"], low: float, high: float
) -> tuple[Float64[np.ndarray, " edges"], Int64[np.ndarray, " bars"], Int64[np.ndarray, " bars"], tuple[float, float]]:
    """Edges of a histogram, the counts that pass and that fail between them, and the places of the limits.

    The limits are edges, and no other edge is near them. If scores and limits are whole numbers, each number is in the
    middle of an interval, and a limit lies between the last number that passes and the first that fails.
    """
    finite = [x for x in (low, high) if math.isfinite(x)]
    first, last = min([float(values.min()), *finite]), max([float(values.max()), *finite])
    if last - first < BINS and not np.modf([*values, *finite])[0].any():
        # One more number than there are: a limit at the last one is not the end of the axis.
        edges, limits = np.arange(first - 0.5, last + 2), (low - 0.5, high + 0.5)
    else:
        step = ((last - first) or abs(first) or 1.0) / (BINS - 1)
        even = np.linspace(first - step / 2, last + step / 2, BINS + 1)
        # Scores have 32 bits, and so has a limit that they are compared with; what equals the upper one still passes.
        splits = np.array([np.float32(low), np.nextafter(np.float32(high), np.float32(np.inf))], np.float64)
        splits = splits[np.isfinite(splits)]
        apart = (np.abs(even[:, None] - splits) > step / 4).all(1)
        edges, limits = np.sort([*even[apart], *splits]), (low, high)
    passed, failed = (np.histogram(values[which], edges)[0] for which in (~failing, failing))
    return edges, passed, failed, limits


def curve(label: str, x_title: str, y_title: str, points: Float64[np.ndarray, "k 2"]) -> Markup:
    """A number over another one; its axis is logarithmic where positive values span more than a factor of ten."""
    x, y = points.T
    wide = 0 < 10 * y.min() < y.max()

    def draw(axes: Axes) -> None:
        axes.plot(x, y, color=ACCENT, marker="o" if len(x) <= 20 else "", markersize=5)
        axes.margins(x=0.01)
        axes.xaxis.set(major_locator=MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]), major_formatter="{x:,.0f}")
        if wide:
            axes.set_yscale("log")
            axes.yaxis.set(
                major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:g}"
            )
        axes.set(xlabel=x_title, ylabel=f"{y_title} (log scale)" if wide else y_title)

    return chart(label, 720, 220, draw)
