"""Axes, figures and colours of all pictures; any eye can tell the colours apart.

The colours are those of Okabe and Ito (2008), for colour-blind eyes; line styles, markers and
hatches are for those who print in grey.
"""

import numpy as np

from tfuq._arguments import shown

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase, SubFigure  # noqa: F401 (of signatures)
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter
except ImportError as error:
    raise ImportError(
        'tfuq.plots draws with matplotlib. Install it with: pip install "tfuq[plots]"'
    ) from error

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
RED, PALE_BLUE, GREY = "#D55E00", "#8DC0E0", "#595959"


def line_style(i):
    """Colour, line and marker of the i-th of several curves."""
    styles = {"color": COLOURS, "linestyle": LINES, "marker": MARKERS}
    return {name: values[i % len(values)] for name, values in styles.items()}


def axes_of(ax):
    """`ax` itself, or the Axes of a new pyplot figure."""
    if ax is None:
        from matplotlib import pyplot  # chooses a backend: only when a figure is asked for

        return pyplot.subplots(figsize=(5.5, 4), layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise ValueError(f"Argument `ax` must be matplotlib Axes or None. Received: ax={shown(ax)}")
    return ax


def figure_of(figure, rows):
    """`figure` itself, or a new pyplot figure."""
    if figure is None:
        from matplotlib import pyplot

        return pyplot.figure(figsize=(9, 2.2 * rows + 0.8), layout="constrained")
    if not isinstance(figure, FigureBase):
        raise ValueError(
            "Argument `figure` must be a matplotlib Figure, SubFigure or None. "
            f"Received: figure={figure!r}"
        )
    return figure


def add_legend_above(ax, **options):
    """A legend in a room of its own above what is drawn, so that it hides nothing."""
    legend = ax.legend(fontsize="small", loc="upper left", **options)
    share = min(0.5, 1.15 * legend.get_window_extent().height / ax.bbox.height)
    low, high = ax.get_ylim()
    ax.set_ylim(low, low + (high - low) / (1 - share), auto=None)


def label_decades(ax, low, high):
    """Labels of a log x-axis that fit a narrow panel: decades, or three numbers within one.

    Where less than a decade is shown, matplotlib labels every step, one over the other.
    """
    if high < 10 * low:
        ax.xaxis.set_major_locator(FixedLocator(MaxNLocator(3).tick_values(low, high)))
        ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())


def write_cells(ax, values, dark, form):
    """Writes the numbers of a matrix into its cells, white where `dark`, as large as they allow."""
    texts = {cell: form.format(v + 0.0) for cell, v in np.ndenumerate(values) if np.isfinite(v)}
    longest = max(map(len, texts.values()), default=1)
    cell = 72 * ax.get_window_extent().width / ax.figure.dpi / values.shape[1]
    size = min(10.0, 1.2 * cell / longest)  # points; a colour bar will take a fifth of the width
    for (row, column), text in texts.items():
        colour = "white" if dark[row, column] else "black"
        ax.text(column, row, text, ha="center", va="center", size=size, color=colour)


def name_classes(ax, names):
    """Names of the classes along both axes of a matrix."""
    turned = {"rotation": 45, "ha": "right"} if max(map(len, names)) > 3 else {}
    ax.set_xticks(range(len(names)), names, **turned)
    ax.set_yticks(range(len(names)), names)
