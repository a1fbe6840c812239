"""Splits over whole runs: several schemes, merged ids, a ledger that was changed by hand."""

from pathlib import Path

import polars as pl
import pytest

from extractors.deid import SYNTHETIC_KEY, DeidConfig, Deidentifier
from tests.support.nights.site import Site, site_of_tables
from validation.verify import verify_release
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.publish import current_release

EVEN = {"train": 0.5, "tuning": 0.25, "held_out": 0.25}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Site:
    """A site of two schemes after its first night. Change nothing: copy it."""
    site = site_of_tables(tmp_path_factory.mktemp("published"), export)
    site.config["splits"] = {"even": EVEN, "mehrt": None}
    assert site.night().published
    return site


@pytest.fixture
def site(published: Site, tmp_path: Path) -> Site:
    return published.copy(tmp_path)


def released(site: Site) -> ReleaseLayout:
    release = current_release(site.layout)
    assert release is not None
    return release


def raw_ids(site: Site) -> dict[int, str]:
    """The hospital's id of each subject."""
    raw = pl.read_csv(site.folder / "tables" / "patients.csv", infer_schema=False).to_series()
    deid = Deidentifier(DeidConfig(mode="synthetic"), SYNTHETIC_KEY)
    return dict(zip(deid.subject_ids(raw), raw, strict=True))


def test_ids_merged_across_splits_leave_every_split_and_come_back(site: Site) -> None:
    before = site.splits()
    assert set(before.values()) == {"train", "tuning", "held_out"}
    names = raw_ids(site)
    train, held = (
        next(subject for subject, assigned in before.items() if assigned == split) for split in ("train", "held_out")
    )
    (site.folder / "merges.csv").write_text(f"old,new\n{names[train]},{names[held]}\n", encoding="utf-8")
    site.config["merges"] = "merges.csv"
    site.night()
    tree = released(site)
    assert site.splits() == {subject: split for subject, split in before.items() if subject not in (train, held)}
    assert set(pl.read_parquet(tree.split_quarantine("even"))["subject_id"]) == {train, held}
    assert all(finding.ok for finding in verify_release(site.layout.root, lambda *_: None))
    balance = pl.read_parquet(tree.quality / "balance.parquet")
    assert balance.filter(scheme="even", split="set aside")["subjects"].to_list() == [2]
    assert balance["scheme"].unique().sort().to_list() == ["even", "mehrt"]
    for path in site.layout.root.rglob("*"):
        assert not path.is_file() or names[train].encode() not in path.read_bytes()
    del site.config["merges"]
    site.night()
    assert site.splits() == before


def test_merges_that_cannot_be_read_stop_the_run_in_one_line(site: Site) -> None:
    site.config["merges"] = "nowhere.csv"
    with pytest.raises(TimeloomError, match=r"cannot read the merges nowhere\.csv"):
        site.night()


def test_a_ledger_that_was_changed_by_hand_stops_the_next_run(site: Site) -> None:
    path = released(site).split_ledger("mehrt")
    ledger = pl.read_parquet(path)
    path.unlink()
    ledger.with_columns(pl.lit("train").alias("split")).write_parquet(path)
    site.change("labs", "mg/dL", "mg/dl")
    with pytest.raises(TimeloomError, match=r"splits/mehrt/ledger\.parquet of .* is damaged; run `timeloom repair`"):
        site.night()


def test_a_scheme_that_goes_and_comes_back_has_moved_nobody(site: Site) -> None:
    before = dict(pl.read_parquet(released(site).scheme_subjects("mehrt")).select("subject_id", "split").iter_rows())
    site.config |= {"splits": {"even": EVEN}, "profiles": {"mehrt": {"scheme": "even"}}}
    site.night()
    tree = released(site)
    assert tree.split_ledger("mehrt").is_file() and not tree.scheme_subjects("mehrt").exists()
    site.config["splits"] = {"mehrt": None, "even": EVEN}
    site.night()
    assert site.splits() == before
