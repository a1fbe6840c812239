"""What a flow run shows of itself in the Prefect UI: progress, tables, a picture, and where the report is.

Artifacts hold what the quality report holds, small cells withheld as there, and no patient's value. They inform: a
server that does not take one must not end, or repeat, what is done.
"""

import base64
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.commands.status import in_place_of, report_tables
from flows.reports import address_of
from validation.report.cells import SMALL_LABEL, Cell, Cells, Hidden, is_small
from validation.report.page import OPEN_MODE
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import read_manifest
from warehouse.publish import current_release

if TYPE_CHECKING:
    from flows.runs.run import RunOutcome
    from validation.verify import Finding

REFRESH_SECONDS = 2.0
# Tables of the report that become artifacts: key, name in the report, description, columns. All where none are named.
SHOWN: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (
        "ledger",
        "counts",
        "Raw rows = events + static + reference + quarantined; the difference must be 0",
        ("table", "raw", "events", "static", "reference", "quarantined", "difference"),
    ),
    ("quarantine", "quarantine", "Raw rows that made nothing, by reason", ("table", "reason", "rows")),
    (
        "expectations",
        "expectations",
        "What the gate expects of the release",
        ("suite", "severity", "sentence", "result", "observed", "rule"),
    ),
    ("items", "verdicts", "Images and notes by verdict", ("modality", "verdict", "items", "meaning")),
    ("losses", "losses", "Less than in the releases before", ("part", "measure", "before", "now", "share", "result")),
)
# Against the night before: a table of the report, what names its rows, the numbers that are compared.
COMPARED = (
    ("counts", ("table",), ("raw", "events", "quarantined")),
    ("verdicts", ("modality", "verdict"), ("items",)),
    ("table_a1", ("split",), ("subjects", "tokens")),
)
# Of what a worker did on its device: what is worked out from the number of images.
COUNTED = ("items", "units", "resumed_units", "units_per_second", "imported", "errors", "encoders")


@contextmanager
def for_looking() -> Iterator[None]:
    """Lets what an artifact needs fail, with a line in the flow run's log."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("the Prefect server did not take an artifact: %s", type(error).__name__)


class Progress:
    """A step's progress in the UI, from its first task on, refreshed every few seconds at most."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._identity: Any = None
        self._asked = False
        self._refreshed = time.monotonic()

    def show(self, percent: float) -> None:
        """Shows a share of the step's tasks, 0 to 100."""
        with for_looking():
            if self._identity is None and not self._asked:
                self._asked = True
                key, what = f"progress-{self._step}", f"Progress of {self._step}"
                self._identity = create_progress_artifact(percent, key=key, description=what)
            elif self._identity is not None:
                update_progress_artifact(self._identity, percent)

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if total and (not self._asked or now - self._refreshed >= REFRESH_SECONDS):
            self._refreshed = now
            self.show(100.0 * done / total)


def cells_of(root: Path) -> Cells:
    """What may be shown of the patients of a root: by its current release."""
    release = current_release(Layout(root))
    mode = None if release is None else read_manifest(release.manifest).deid.mode
    return Cells(open=mode == OPEN_MODE)


def show_outcome(outcome: "RunOutcome", root: Path, cells: Cells) -> None:
    """Shows how a night ended, what its release holds, and what changed against the night before."""
    with for_looking():
        _table("steps", "Tasks run, linked, resumed, and seconds, a step", [_flat(step) for step in outcome.steps])
        _table(
            "devices",
            "Images encoded and how busy the devices were",
            [shown_device(device, cells) for step in outcome.steps for device in step.get("devices", [])],
        )
        create_markdown_artifact("\n\n".join(words(outcome, cells)), key="release")
        _show_report(root)
    with for_looking():
        release = current_release(Layout(root))
        if release is None:
            return
        manifest = read_manifest(release.manifest)
        tables = report_tables(release, manifest)
        for key, name, description, columns in SHOWN:
            rows = tables.get(name, {}).get("rows", [])
            _table(key, description, [{column: _cell(row, column) for column in columns} for row in rows])
        _show_picture(release)
        before = ReleaseLayout(Layout(root).releases / str(manifest.parent))
        if outcome.published and manifest.parent and before.manifest.is_file():
            rows = changes(report_tables(before, read_manifest(before.manifest)), tables, is_open=cells.open)
            _table("changes", f"Against {manifest.parent}", rows or [{"what": "nothing that the report counts"}])


def show_findings(findings: "list[Finding]") -> None:
    """Shows what `verify` found."""
    with for_looking():
        rows = [
            {"check": each.check, "result": "pass" if each.ok else "fail", "detail": each.detail, "remedy": each.remedy}
            for each in findings
        ]
        _table("findings", "Checksums and references, recomputed", rows)


def show_lines(key: str, lines: list[str]) -> None:
    """Shows what a flow says of what it did."""
    with for_looking():
        create_markdown_artifact("\n\n".join(lines), key=key)


def show_collection(described: dict[str, Any]) -> None:
    """Shows what `gc` removed, or would."""
    with for_looking():
        done = "removed" if described["applied"] else "would go"
        _table("collected", f"{described['bytes']:,} bytes: what {done}", described["gone"])


def changes(before: dict[str, Any], now: dict[str, Any], *, is_open: bool) -> list[dict[str, Any]]:
    """Rows of the report's tables whose numbers differ from those of an older report.

    A number that either report withholds, and a difference of 1 to 10, is not shown: who knows one night's number
    would know the other's.

    Args:
        before, now: tables of two reports, by name.
        is_open: nothing is withheld: the subjects are simulated.
    """
    found = []
    for name, keys, numbers in COMPARED:
        older, newer = (
            {tuple(row[key] for key in keys): row for row in tables.get(name, {}).get("rows", [])}
            for tables in (before, now)
        )
        for key in sorted({*older, *newer}):
            found += _changes_of({"what": " ".join(key)}, older.get(key), newer.get(key), numbers, is_open=is_open)
    return found


def _changes_of(
    names: dict[str, Any],
    before: dict[str, Any] | None,
    now: dict[str, Any] | None,
    numbers: Sequence[str],
    *,
    is_open: bool,
) -> list[dict[str, Any]]:
    """The changes of a row's numbers. Where one of them is small, none of them is shown: one may be worked out from
    another, as six patients more from their 18 events."""
    both = {number: (_number(before, number), _number(now, number)) for number in numbers}
    changed = {number: pair for number, pair in both.items() if pair[0] != pair[1]}
    known = {
        number: (was, is_now) for number, (was, is_now) in changed.items() if was is not None and is_now is not None
    }
    if len(known) < len(changed) or (not is_open and any(is_small(is_now - was) for was, is_now in known.values())):
        hidden = {"before": "withheld", "now": "withheld", "change": "changed"}
        return [names | {"number": number} | hidden for number in changed]
    return [
        names | {"number": number, "before": was, "now": is_now, "change": f"{is_now - was:+,}"}
        for number, (was, is_now) in known.items()
    ]


def _number(row: dict[str, Any] | None, name: str) -> int | None:
    """A row's number; None where it is withheld, 0 where there is no such row."""
    if row is None:
        return 0
    value = row.get(name)
    return None if value is None else int(value)


def _cell(row: dict[str, Any], name: str) -> Any:
    """A cell for a person: its value, or what stands in place of a withheld one."""
    value = row.get(name)
    return in_place_of(row, name) if value is None else value


def _table(key: str, description: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        create_table_artifact(rows, key=key, description=description)


def _flat(step: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in step.items() if not isinstance(value, list)}


def shown_device(device: dict[str, Any], cells: Cells) -> dict[str, Any]:
    """What a worker did on its device; of few images only how long it took."""
    errors = {verdict: _label(cells.count(number)) for verdict, number in device["errors"].items()}
    hidden = COUNTED if isinstance(cells.count(device["items"]), Hidden) else ()
    return {name: SMALL_LABEL if name in hidden else value for name, value in (device | {"errors": errors}).items()}


def _label(cell: Cell) -> Any:
    return cell.label if isinstance(cell, Hidden) else cell


def words(outcome: "RunOutcome", cells: Cells) -> list[str]:
    """How a night ended; totals as the report has them."""
    what = "published" if outcome.published else "unchanged, nothing published"
    lines = [f"# Release {outcome.release}", f"{what}; {cells.about(outcome.quarantined)} quarantined"]
    lines += [f"profile {name}: {share:.1%} of clinical events are tokens" for name, share in outcome.tokenised.items()]
    lines += [f"loss agreed to: {part}" for part in outcome.accepted]
    lines += [f"damaged in the release before, made anew: {name}" for name in outcome.damaged]
    lines += [outcome.unannounced] if outcome.unannounced else []
    return [*lines, *outcome.withheld]


def _show_report(root: Path) -> None:
    """Where the report is: an address where it is served; else in words, as browsers refuse links to files."""
    link = address_of(root)
    if link is not None:
        create_link_artifact(link, key="quality-report", link_text="quality report")
    else:
        where = f"On the machine of this run: `timeloom report --root {root}`"
        create_markdown_artifact(where, key="quality-report", description="The quality report")


def _show_picture(release: ReleaseLayout) -> None:
    """The histogram of lengths, inside the artifact: the UI shows it wherever the release lies."""
    picture = release.quality / "figure_lengths.png"
    if picture.is_file():
        inside = base64.b64encode(picture.read_bytes()).decode()
        create_image_artifact(
            f"data:image/png;base64,{inside}", key="lengths", description="Tokens a patient, by split"
        )
