"""The report's figures, drawn from its tables, so that a hidden cell is hidden in them too. PNG bytes, no display.

A picture says what it was drawn of: where the one of the release before shows the same, it is taken.
"""

import io
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from validation.report.cells import Hidden
from validation.report.table import Table
from warehouse.files import sha256_file, sha256_json

COLOURS = ("#2f5d8a", "#c98a3b", "#7b8794", "#5b8f6a")
INK, RULE = "#323f4b", "#cbd2d9"
DOTS_PER_INCH = 200
# Of a share: a hundredth of a percent is less than a pixel of a bar.
SEEN_PLACES = 4
# The text of a PNG that holds what it was drawn of.
DRAWN_OF = "Comment"


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.tick_params(colors=INK, labelsize=8, color=RULE, length=3)
    axes.set_axisbelow(True)
    return figure, axes


def picture(draw: Callable[[Table, str], Any], table: Table, unit: str, before: Path | None) -> bytes:
    """A figure as a PNG.

    Args:
        draw: `modality_figure` or `length_figure`.
        unit: of timelines' lengths.
        before: the same figure of the release before, whole.
    """
    seen = _as_seen(table)
    rows = [{name: cell.label if isinstance(cell, Hidden) else cell for name, cell in row.items()} for row in seen.rows]
    drawn_by = [draw.__name__, version("matplotlib"), sha256_file(Path(__file__))]
    drawn_of = sha256_json([drawn_by, unit, rows])
    if before is not None and _says(before) == drawn_of:
        return before.read_bytes()
    target = io.BytesIO()
    draw(seen, unit).savefig(target, format="png", metadata={"Software": None, DRAWN_OF: drawn_of})
    return target.getvalue()


def _as_seen(table: Table) -> Table:
    """What a figure shows of a table: splits, their parts, and shares as exact as a picture is."""

    def seen(cell: Any) -> Any:
        return round(cell, SEEN_PLACES) if isinstance(cell, float) else cell

    shown = ("split", "set", "low", "share")
    return replace(table, rows=[{name: seen(row[name]) for name in shown if name in row} for row in table.rows])


def _says(path: Path) -> str | None:
    from PIL.PngImagePlugin import PngImageFile

    with PngImageFile(path) as file:
        found: str | None = file.info.get(DRAWN_OF)
    return found


def _shares(table: Table, split: Any, column: str) -> tuple[list[Any], list[float | None]]:
    rows = [row for row in table.rows if row["split"] == split]
    shares = [None if isinstance(row["share"], Hidden) else float(str(row["share"])) for row in rows]
    return [row[column] for row in rows], shares


def _splits(table: Table) -> list[Any]:
    return list(dict.fromkeys(row["split"] for row in table.rows))


def modality_figure(table: Table, _unit: str = "") -> Any:
    """Figure A1: the share of each modality set in each split."""
    figure, axes = _axes(6.6, 2.9)
    splits = _splits(table)
    height = 0.8 / max(len(splits), 1)
    labels: list[Any] = []
    for order, split in enumerate(splits):
        labels, shares = _shares(table, split, "set")
        colour, thick = COLOURS[order % len(COLOURS)], height * 0.88
        places = [index + (order - (len(splits) - 1) / 2) * height for index in range(len(labels))]
        axes.barh(places, [100 * (share or 0.0) for share in shares], thick, color=colour, label=str(split))
        for place, share in zip(places, shares, strict=True):
            if share is None:
                # Over the whole width: a bar of no length would say that there are none.
                axes.barh(place, 100, thick, color="none", edgecolor=RULE, hatch="////", linewidth=0)
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
                axes.text(1.6, place, f"withheld ({split})", va="center", fontsize=6, color=INK, bbox=box)
            else:
                axes.text(100 * share + 0.8, place, f"{100 * share:.1f} %", va="center", fontsize=7, color=INK)
    axes.set_yticks(range(len(labels)), [str(label) for label in labels])
    axes.invert_yaxis()
    axes.set_xlim(0, 110)
    axes.set_xlabel("share of the split's patients (%)", fontsize=8, color=INK)
    axes.xaxis.grid(True, color=RULE, linewidth=0.5)
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def length_figure(table: Table, unit: str) -> Any:
    """The distribution of timelines' length in each split, bins doubling in width."""
    figure, axes = _axes(6.6, 2.7)
    styles = ("-", "--", "-.", ":")
    for order, split in enumerate(_splits(table)):
        lows, shares = _shares(table, split, "low")
        if not lows:
            continue
        # nan leaves a gap where a bin is withheld; the legend says that it is none of no patients
        heights = [float("nan") if share is None else 100 * share for share in shares]
        hidden = shares.count(None)
        said = "" if not hidden else " (withheld)" if hidden == len(shares) else " (gaps withheld)"
        edges = [*lows, 2 * lows[-1]]
        axes.stairs(
            heights,
            edges,
            color=COLOURS[order % len(COLOURS)],
            linestyle=styles[order % len(styles)],
            linewidth=1.5,
            label=f"{split}{said}",
            baseline=None,
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"length of a timeline ({unit})", fontsize=8, color=INK)
    axes.set_ylabel("patients (%)", fontsize=8, color=INK)
    axes.yaxis.grid(True, color=RULE, linewidth=0.5)
    if table.rows:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure
