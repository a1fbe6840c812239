"""Tasks that go on from files of the release before, as ledgers: what they add is added once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine.context import RunContext, StageReport, Standing
from pipelines.engine.local import LocalEngine
from pipelines.engine.run_stage import run_stage
from pipelines.engine.task import Result, StageFunction, make_task
from tests.support.nights import toy_stage
from warehouse.layout import Layout
from warehouse.manifest import Manifest
from warehouse.publish import publish

STAGE = StageFunction("guests", 1, "tests.pipelines.engine.test_continued:run", inputs_are=("arrivals",))
BOOK = "book.txt"


def run(params: Mapping[str, Any], base: Path) -> Result:
    """A guest book: whoever arrives is added to those who stand there."""
    known = Path(params["known"]).read_text().split() if params["known"] else []
    base.mkdir(parents=True, exist_ok=True)
    (base / BOOK).write_text("\n".join([*known, *(name for name in params["arrivals"] if name not in known)]))
    return Result({BOOK: None}, {"known": len(known)})


class Inn:
    """Nights of the guest book over one root."""

    def __init__(self, root: Path) -> None:
        self.layout, self.releases = Layout(root), list[Standing]()
        self.nights = 0

    def night(self, *arrivals: str, first: bool = False) -> tuple[StageReport, Path]:
        """What the stage did, and its staging folder.

        Args:
            first: it goes on from the first release, as a repair may from an older one.
        """
        self.nights += 1
        staging = self.layout.work / str(self.nights)
        staging.mkdir(parents=True)
        last = self.releases[-1] if self.releases else None
        source = self.releases[0] if first else last
        known = source.inherited(BOOK) if source else None
        context = RunContext(LocalEngine(1), staging, last.manifest if last else None, last.path if last else None)
        task = make_task(
            STAGE,
            "all",
            staging,
            settings="s",
            inputs=sorted(arrivals),
            params={"arrivals": arrivals, "known": str(known.path) if known else None},
            continued={BOOK: known.sha256 if known else None},
        )
        return run_stage(STAGE, [task], context), staging

    def publish(self, *arrivals: str) -> StageReport:
        report, staging = self.night(*arrivals)
        entry = report.entries["all"]
        name = f"night-{self.nights}"
        manifest: Manifest = toy_stage.toy_manifest(entry.files, name)
        manifest = manifest.model_copy(update={"tasks": {"guests/all": entry}})
        publish(self.layout, staging / "release", manifest)
        self.releases.append(Standing(manifest, self.layout.releases / name))
        return report


@pytest.fixture
def inn(tmp_path: Path) -> Inn:
    return Inn(tmp_path / "root")


def done(report: StageReport) -> tuple[int, int]:
    return report.ran, report.linked


def test_the_same_arrivals_are_added_once(inn: Inn) -> None:
    assert done(inn.publish("ada", "bob")) == (1, 0)
    again, staging = inn.night("ada", "bob")
    assert done(again) == (0, 1)
    assert (staging / "release" / BOOK).read_text() == "ada\nbob"
    assert again.entries["all"].counts == {"known": 0}, "the outcome is that of the night that made it"


def test_who_is_new_is_added_to_those_before(inn: Inn) -> None:
    inn.publish("ada", "bob")
    report = inn.publish("ada", "bob", "cy")
    assert done(report) == (1, 0) and report.entries["all"].counts == {"known": 2}
    assert done(inn.night("ada", "bob", "cy")[0]) == (0, 1)
    # What stands there would stay, but another night's outcome is none of these arrivals.
    assert done(inn.night("ada", "bob")[0]) == (1, 0)


def test_what_is_published_of_a_linked_outcome_is_not_made_again_either(inn: Inn) -> None:
    inn.publish("ada", "bob")
    assert done(inn.publish("ada", "bob")) == (0, 1)
    assert done(inn.night("ada", "bob")[0]) == (0, 1)


def test_a_book_that_the_last_outcome_did_not_leave_is_gone_on_from(inn: Inn) -> None:
    """A repair takes the book of an older release, where the last one's is damaged."""
    for arrivals in (["bob"], ["bob", "ada"], ["bob", "ada", "cy"]):
        inn.publish(*arrivals)
    report, staging = inn.night("ada", "bob", "cy", first=True)
    assert done(report) == (1, 0) and report.entries["all"].counts == {"known": 1}
    assert (staging / "release" / BOOK).read_text() == "bob\nada\ncy"


def test_a_damaged_book_is_not_linked(inn: Inn) -> None:
    inn.publish("ada", "bob")
    book = inn.releases[-1].path / BOOK
    book.write_bytes(book.read_bytes().replace(b"bob", b"rob"))
    assert done(inn.night("ada", "bob")[0]) == (1, 0)


def test_a_run_that_resumes_goes_on_from_the_same_book(inn: Inn, tmp_path: Path) -> None:
    """The record of a run that was killed counts only for a task that goes on from what that one went on from."""
    inn.publish("ada")
    inn.publish("ada", "bob")
    known = [release.inherited(BOOK) for release in inn.releases]
    staging = tmp_path / "work"
    context = RunContext(LocalEngine(1), staging, None, None)
    reports = [
        run_stage(
            STAGE,
            [
                make_task(
                    STAGE,
                    "all",
                    staging,
                    settings="s",
                    inputs=["cy"],
                    params={"arrivals": ["cy"], "known": str(book.path)},
                    continued={BOOK: book.sha256},
                )
            ],
            context,
        )
        for book in (known[0], known[0], known[1])
        if book is not None
    ]
    assert [(report.ran, report.resumed) for report in reports] == [(1, 0), (0, 1), (1, 0)]
    assert (staging / "release" / BOOK).read_text() == "ada\nbob\ncy"
