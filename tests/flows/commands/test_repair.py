"""Which segments and records a repair removes, so that its night makes them anew; tests/whole/test_damage.py repairs
whole roots."""

from pathlib import Path

import pytest

from flows.commands.repair import _forget_damaged
from tests.support.nights.many_releases import entry_of
from validation.damage import Root, of_segments
from warehouse.layout import Layout
from warehouse.manifest import TaskEntry
from warehouse.sealed import write_sealed


def segments(folder: Path) -> Layout:
    """Segments of three nights, each but the first going on from those before, and one that stands alone."""
    layout = Layout(folder / "warehouse")
    layout.segments.mkdir(parents=True)
    for name in ("a", "b", "c", "other"):
        (layout.segments / f"{name}.segment").write_bytes(name.encode() * 50)
    for name, needed in (("a", "a"), ("b", "ab"), ("c", "abc"), ("other", ("other",))):
        files = {f"{each}.segment": entry_of(layout.segments / f"{each}.segment") for each in needed}
        entry = TaskEntry(fingerprint=name, files=files)
        write_sealed(layout.segments / f"{name}.json", entry.model_dump(mode="json"))
    return layout


@pytest.mark.parametrize(
    ("harmed", "stay"),
    [
        ("a.segment", {"other"}),
        ("b.segment", {"a", "other"}),
        ("c.segment", {"a", "b", "other"}),
        # A segment without a record of its own stays where another record needs it.
        ("b.json", {"a", "b", "c", "other"}),
        ("c.json", {"a", "b", "other"}),
    ],
)
@pytest.mark.parametrize("deleted", [False, True])
def test_what_goes_on_from_a_damaged_segment_is_removed_too(
    tmp_path: Path, harmed: str, stay: set[str], deleted: bool
) -> None:
    """Else its record names a file that nobody makes again, and the root stays damaged."""
    layout = segments(tmp_path)
    path = layout.segments / harmed
    if deleted:
        path.unlink()
    else:
        path.write_bytes(b"x" * path.stat().st_size)
    found = list(of_segments(Root(layout)))
    _forget_damaged(layout, found)
    assert {path.stem for path in layout.segments.iterdir()} == stay
    assert not list(of_segments(Root(layout)))
