"""A figure is drawn where it shows something else than the one of the release before."""

from pathlib import Path
from typing import Any, cast

import pytest

from validation.report.cells import WITHHELD
from validation.report.figures import length_figure, modality_figure, picture
from validation.report.table import Table

UNIT = "tokens of mehrt"


def table(*shares: object) -> Table:
    rows = [{"split": "train", "low": 2**place, "subjects": 40, "share": share} for place, share in enumerate(shares)]
    return Table("lengths", "", [], cast(Any, rows))


@pytest.fixture
def before(tmp_path: Path) -> Path:
    path = tmp_path / "figure_lengths.png"
    path.write_bytes(picture(length_figure, table(0.5, 0.3, 0.2), UNIT, None))
    return path


def test_what_shows_the_same_is_not_drawn_again(before: Path) -> None:
    def length_figure(*_: object) -> None:
        pytest.fail("it is drawn")

    # A share that differs by less than a pixel, and a count that no figure shows.
    same = table(0.500004, 0.299998, 0.2)
    same.rows[0]["subjects"] = 41
    assert picture(length_figure, same, UNIT, before) == before.read_bytes()


@pytest.mark.parametrize(
    ("draw", "now", "unit"),
    [
        (length_figure, table(0.5, 0.299, 0.201), UNIT),
        (length_figure, table(0.5, WITHHELD, WITHHELD), UNIT),
        (length_figure, table(0.5, 0.3, 0.2, 0.0), UNIT),
        (length_figure, table(0.5, 0.3, 0.2), "events"),
    ],
)
def test_what_shows_something_else_is_drawn(before: Path, draw: Any, now: Table, unit: str) -> None:
    drawn = picture(draw, now, unit, before)
    assert drawn != before.read_bytes()
    assert drawn == picture(draw, now, unit, None)


def test_a_picture_that_does_not_say_what_it_shows_is_drawn(before: Path) -> None:
    """As an older timeloom drew it."""
    from PIL import Image

    with Image.open(before) as drawn:
        drawn.save(before)
    assert picture(length_figure, table(0.5, 0.3, 0.2), UNIT, before) != before.read_bytes()


def test_another_figure_of_the_same_rows_is_drawn(before: Path) -> None:
    rows = [{**row, "set": "CT"} for row in table(0.5, 0.3, 0.2).rows]
    other = picture(modality_figure, Table("figure_a1", "", [], rows), UNIT, before)
    assert other.startswith(b"\x89PNG") and other != before.read_bytes()
