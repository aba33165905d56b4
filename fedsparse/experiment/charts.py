"""Charts as SVG text for inline use in HTML. The one file that needs matplotlib; import it only to draw.

The same numbers give the same text: ids come from a fixed salt, no date is written, texts stay texts.
"""

import io
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from fedsparse.errors import MissingExtraError
from fedsparse.experiment.series import Curve, LayerGrid

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator
except ImportError as error:
    raise MissingExtraError("reports are drawn by matplotlib: pip install 'fedsparse[report]'") from error

__all__ = ["colour", "curves", "dash", "layers", "pareto"]

# Okabe and Ito's colours, told apart with colour-blind eyes too; yellow left out, which white swallows.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# Of a line, by what CSS calls it, and of a point; the next of both when the colours begin again.
DASHES = ("solid", "dashed", "dotted")
MARKERS = ("o", "s", "^")
UNITS = {"bytes": "B", "client seconds": "s"}
# In inches.
PANEL, HEIGHT, LAYER_HEIGHT = 4.0, 3.0, 0.16


def colour(index: int) -> str:
    """Of the run with this number."""
    return COLOURS[index % len(COLOURS)]


def dash(index: int) -> str:
    """Of the line of the run with this number, as CSS calls it."""
    return DASHES[index // len(COLOURS) % len(DASHES)]


def curves(panels: Mapping[str, Sequence[Curve]], *, y: str, chart: str) -> str:
    """A panel for each quantity on the x axis, with one line a run.

    Args:
        panels: for each quantity a curve of each run, in the runs' order.
        y: label of the y axis.
        chart: a word that no other chart of the page has.
    """
    figure = Figure(figsize=(PANEL * len(panels), HEIGHT), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, lines) in zip(all_axes, panels.items(), strict=True):
        for index, line in enumerate(lines):
            axes.plot(line.x, line.y, color=colour(index), linestyle=dash(index), marker=".", markersize=4)
        _label(axes, name)
    all_axes[0].set_ylabel(y)
    return _svg(figure, chart)


def pareto(points: Mapping[int, tuple[float, float]], front: Sequence[int], *, chart: str) -> str:
    """Final accuracy against all bytes, one point a run, with a line through the runs that none beats."""
    figure = Figure(figsize=(PANEL * 1.5, HEIGHT), layout="constrained")
    axes = figure.subplots()
    ends = [points[index] for index in front]
    axes.step([x for x, _ in ends], [y for _, y in ends], where="post", color="#999999", linewidth=1)
    for index, (x, y) in points.items():
        filled = colour(index) if index in front else "none"
        marker = MARKERS[index // len(COLOURS) % len(MARKERS)]
        axes.plot([x], [y], marker=marker, color=colour(index), markerfacecolor=filled)
    _label(axes, "bytes")
    axes.set_ylabel("final accuracy")
    return _svg(figure, chart)


def layers(grid: LayerGrid, *, chart: str) -> str:
    """Density and turnover of each layer over the rounds, as two pictures."""
    height = 1.2 + LAYER_HEIGHT * len(grid.layers)
    figure = Figure(figsize=(PANEL * 2.5, height), layout="constrained")
    for axes, title, values in zip(
        figure.subplots(1, 2, sharey=True),
        ("density", "changed / kept"),
        (grid.density, grid.turnover),
        strict=True,
    ):
        highest = max((value for row in values for value in row), default=0.0) or 1.0
        extent = (0.5, len(values[0]) + 0.5, len(values) - 0.5, -0.5)
        picture = axes.imshow(values, aspect="auto", interpolation="none", vmin=0, vmax=highest, extent=extent)
        figure.colorbar(picture, ax=axes)
        axes.set_title(title, fontsize=9)
        axes.set_yticks(range(len(grid.layers)), labels=grid.layers, fontsize=7, parse_math=False)
        axes.set_xlabel("rounds")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _svg(figure, chart)


def _label(axes: Axes, name: str) -> None:
    axes.set_xlabel(name)
    axes.grid(alpha=0.3)
    if name in UNITS:
        axes.xaxis.set_major_formatter(EngFormatter(UNITS[name]))
        axes.xaxis.set_major_locator(MaxNLocator(5))  # numbers with their units are wide
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _svg(figure: Figure, chart: str) -> str:
    text = io.StringIO()
    # Every style that changes the text is that of the library, whatever the user's matplotlibrc says.
    with rc_context({"svg.hashsalt": f"fedsparse {chart}", "svg.fonttype": "none", "svg.image_inline": True}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), chart)


def _inline(document: str, chart: str) -> str:
    """The document as an element of HTML: without namespaces, its ids apart from those of all other charts."""
    root = ElementTree.fromstring(document)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag.endswith("}metadata")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _apart(_local(key), value, chart) for key, value in element.attrib.items()}
    root.set("role", "img")
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _apart(key: str, value: str, chart: str) -> str:
    if key == "id":
        return f"{chart}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{chart}-{value[1:]}"
    return value.replace("url(#", f"url(#{chart}-")
