"""What is less than before: against the parent and the window, always where a table is gone, and what is agreed to."""

from collections.abc import Sequence

import pytest

from pipelines.limits import LimitsConfig
from validation.measure.losses import Earlier, loss_entries, measure_losses
from warehouse.manifest import ContentEntry, LossEntry

RULES = {"mehrt": "r"}


def table(rows: int, name: str = "labs", events: int | None = None) -> ContentEntry:
    counts = {"rows": rows, "events": rows if events is None else events, "subjects": 0}
    return ContentEntry(kind="table", name=name, within="site", counts=counts)


def tokens(number: int) -> ContentEntry:
    return ContentEntry(kind="tokens", name="LOINC", within="mehrt", counts={"tokens": number})


def space(events: int) -> ContentEntry:
    return ContentEntry(kind="namespace", name="LOINC", within="site/labs", counts={"events": events})


def earlier(*contents: ContentEntry, name: str = "before", accepted: Sequence[LossEntry] = ()) -> Earlier:
    return Earlier(name, contents, RULES, frozenset(loss.key for loss in accepted))


def losses(now: list[ContentEntry], before: list[Earlier], *accepted: str, **limits: float) -> list[tuple[object, ...]]:
    """Kind, name, measure, before, now, and whether it was lost or that was agreed to."""
    found = measure_losses(now, before, RULES, accepted, LimitsConfig.model_validate(limits))
    verdict = {(1, 0): "lost", (0, 1): "accepted"}
    return [
        (row["kind"], row["name"], row["measure"], row["before"], row["now"], verdict[row["lost"], row["accepted"]])
        for row in found.iter_rows(named=True)
        if row["lost"] or row["accepted"]
    ]


@pytest.mark.parametrize(
    ("before", "now", "lost"),
    [
        (90, 60, False),  # a third, and not more
        (90, 59, True),
        (49, 1, False),  # too few to judge
        (50, 33, True),
        (49, 0, True),  # gone
        (1, 0, True),
        (90, 200, False),
    ],
)
def test_more_than_a_third_of_fifty_rows_is_a_loss_and_so_is_a_table_that_is_gone(
    before: int, now: int, lost: bool
) -> None:
    found = losses([table(now, events=0)], [earlier(table(before, events=0))])
    assert found == ([("table", "labs", "rows", before, now, "lost")] if lost else [])
    if now == 0:
        assert losses([], [earlier(table(before, events=0))]) == found


def test_limits_are_those_of_the_configuration() -> None:
    before = [earlier(table(100))]
    assert losses([table(89)], before, loss=0.1) == [
        ("table", "labs", "rows", 100, 89, "lost"), ("table", "labs", "events", 100, 89, "lost"),
    ]  # fmt: skip
    assert losses([table(89)], before, loss=0.1, fewest=101) == []


def test_what_goes_little_by_little_is_a_loss_against_the_window() -> None:
    window = [earlier(table(rows), name=str(rows)) for rows in (80, 90, 100)]
    assert losses([table(66)], window[:2]) == []
    assert {found[3:] for found in losses([table(66)], window)} == {(100, 66, "lost")}


def test_a_loss_is_agreed_to_by_the_table_its_source_or_both_and_takes_what_follows_with_it() -> None:
    before = [earlier(table(100), table(100, "notes"), space(100), tokens(300))]
    now = [table(0), table(100, "notes"), tokens(30)]
    refused = losses(now, before)
    assert [found[:3] for found in refused] == [
        ("table", "labs", "rows"),
        ("table", "labs", "events"),
        ("namespace", "LOINC", "events"),
        ("tokens", "LOINC", "tokens"),
    ]
    for name in ("labs", "site/labs", "site"):
        assert losses(now, before, name) == [(*found[:5], "accepted") for found in refused]
    assert losses(now, before, "notes") == refused
    # Who agrees to one table's loss does not agree to another's.
    both = losses([], before, "labs")
    assert {found[1]: found[5] for found in both if found[0] == "table"} == {"labs": "accepted", "notes": "lost"}


def test_what_was_agreed_to_is_not_asked_again_by_older_releases() -> None:
    full = earlier(table(100), space(100), name="full")
    found = measure_losses([table(20), space(20)], [full], RULES, ["labs"], LimitsConfig())
    accepted = loss_entries(found)
    assert accepted[0] == LossEntry(kind="table", name="labs", within="site", measure="rows", before=100, now=20)
    night = earlier(table(20), space(20), name="accepted", accepted=accepted)
    assert losses([table(20), space(20)], [night, full]) == []
    later = earlier(table(55), space(55), name="later")
    assert losses([table(50), space(50)], [later, night, full]) == []
    assert {found[3:] for found in losses([table(30), space(30)], [later, night, full])} == {(55, 30, "lost")}


def test_tokens_are_compared_where_the_rules_of_their_profile_are_the_same() -> None:
    before = Earlier("before", [tokens(300)], {"mehrt": "other"})
    assert losses([tokens(10)], [before]) == []
    assert losses([tokens(10)], [earlier(tokens(300))]) == [("tokens", "LOINC", "tokens", 300, 10, "lost")]


def test_images_and_their_patients_are_compared() -> None:
    def ct(items: int, subjects: int) -> ContentEntry:
        return ContentEntry(kind="modality", name="ct", counts={"items": items, "subjects": subjects})

    assert losses([ct(90, 20)], [earlier(ct(100, 60))]) == [("modality", "ct", "subjects", 60, 20, "lost")]
    assert losses([ct(0, 3)], [earlier(ct(4, 3))]) == [("modality", "ct", "items", 4, 0, "lost")]
    assert losses([], [earlier(ct(4, 3))], "ct") == [("modality", "ct", "items", 4, 0, "accepted")]


def test_tables_of_several_sources_are_agreed_to_by_both_names() -> None:
    before = [earlier(table(100), ContentEntry(kind="table", name="labs", within="archive", counts={"rows": 100}))]
    found = measure_losses([table(100)], before, RULES, (), LimitsConfig())
    assert set(found["option"]) == {"archive/labs"}
    alone = measure_losses([], [earlier(table(100))], RULES, (), LimitsConfig())
    assert set(alone["option"]) == {"labs"}
