"""A night with much less than the one before is refused, unless a person agrees to that loss for this night."""

import json
from pathlib import Path

import pytest

from tests.support.nights.site import Site, make_export, site_of_tables
from warehouse.errors import TimeloomError
from warehouse.manifest import read_manifest
from warehouse.publish import current_release


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A hospital after its first night."""
    folder = tmp_path_factory.mktemp("site")
    site = site_of_tables(folder / "hospital", make_export(folder / "export"))
    site.night()
    return site


def keep_rows(site: Site, table: str, share: float) -> tuple[int, int]:
    """Leaves the first rows of a table, and gives how many there were and are."""
    path = site.folder / "tables" / f"{table}.csv"
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    kept = rows[: int(share * len(rows))]
    path.write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")
    return len(set(rows)), len(set(kept))


def report_of(site: Site) -> dict[str, list[dict[str, object]]]:
    """The tables of the report that a refused night left."""
    (path,) = site.layout.work.glob("*/release/quality/tables.json")
    tables = json.loads(path.read_text(encoding="utf-8"))
    return {name: table["rows"] for name, table in tables.items()}


def test_half_of_a_table_none_of_it_and_a_night_that_agrees(site: Site) -> None:
    before = site.manifest.release_id
    for share in (0.5, 0.0):
        rows, left = keep_rows(site, "labs", share)
        if share:
            whole = rows
        with pytest.raises(
            TimeloomError, match=rf"table labs of simulated-hospital has {left} of {whole} rows"
        ) as caught:
            site.night()
        assert "--accept-loss labs;" in caught.value.remedy
        assert site.manifest.release_id == before
        refused = {(row["part"], row["measure"]): row for row in report_of(site)["losses"]}
        rows_lost = refused["table labs of simulated-hospital", "rows"]
        assert (rows_lost["before"], rows_lost["now"], rows_lost["result"]) == (whole, left, "refused")
    # A name that nothing has agrees to nothing.
    with pytest.raises(TimeloomError, match="the release before holds no lbas"):
        site.night(accept_loss=["lbas"])
    # Another table's loss is not what was lost.
    with pytest.raises(TimeloomError, match="table labs"):
        site.night(accept_loss=["medications"])
    outcome = site.night(accept_loss=["labs"])
    assert outcome.published
    assert outcome.accepted == ["table labs", "source simulated-hospital", "namespace LOINC", "tokens LOINC"]
    agreed = {(loss.kind, loss.name, loss.measure): (loss.before, loss.now) for loss in site.manifest.accepted_losses}
    assert agreed["table", "labs", "rows"] == (whole, 0)
    lineage = json.loads((site.layout.lineage / f"{site.manifest.run_id}.json").read_text(encoding="utf-8"))
    assert {loss["name"] for loss in lineage["acceptedLosses"]} >= {"labs", "LOINC"}
    release = current_release(site.layout)
    assert release is not None
    tables = json.loads((release.quality / "tables.json").read_text(encoding="utf-8"))
    assert {row["result"] for row in tables["losses"]["rows"]} == {"agreed to"}


def test_the_next_night_is_compared_with_the_one_that_was_agreed_to(site: Site) -> None:
    """A release follows that has no laboratory values either: nobody is asked again."""
    assert site.manifest.accepted_losses
    keep_rows(site, "medications", 0.9)
    assert site.night().published
    assert site.manifest.accepted_losses == ()
    # What is lost now is judged by the window all the same.
    keep_rows(site, "medications", 0.6)
    with pytest.raises(TimeloomError, match="table medications"):
        site.night()


def test_a_parent_of_an_older_version_is_measured(site: Site) -> None:
    """Its manifest does not count what it holds."""
    release = current_release(site.layout)
    assert release is not None
    plain = json.loads(release.manifest.read_text(encoding="utf-8"))
    for name in ("contents", "accepted_losses"):
        plain.pop(name)
    release.manifest.write_text(json.dumps(plain), encoding="utf-8")
    assert read_manifest(release.manifest).contents == ()
    keep_rows(site, "diagnoses", 0.5)
    with pytest.raises(TimeloomError, match="table diagnoses of simulated-hospital has"):
        site.night(accept_loss=["medications"])


def test_a_source_that_is_read_as_nothing_stops(site: Site) -> None:
    """Every row of a table has one field too many: it is no release with an empty table."""
    path: Path = site.folder / "tables" / "diagnoses.csv"
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([header, *(f"{row},x" for row in rows)]) + "\n", encoding="utf-8")
    with pytest.raises(TimeloomError, match=f"table diagnoses: {len(rows)} of {len(rows)} rows make nothing"):
        site.night(accept_loss=["diagnoses", "medications"])
