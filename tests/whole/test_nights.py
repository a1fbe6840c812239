"""What happens over several nights: kills, lost folders, damaged files, schemes and sources that come and go."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from extractors.deid import Deidentifier, load_key
from extractors.modalities import EXTRACTORS
from extractors.wsi.settings import WsiSettings
from flows.runs import run as flow
from flows.runs.run import Run
from pipelines.config import parse_config
from pipelines.engine.local import LocalEngine
from tests.support.images.phantoms import stained, write_series, write_tiff
from tests.support.nights.site import Site, site_of_tables
from validation.verify import verify_release
from warehouse import Release
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.publish import current_release


@pytest.fixture
def site(tmp_path: Path, export: Path) -> Site:
    return site_of_tables(tmp_path, export)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Site:
    """The same site after its first night. Change nothing: copy it."""
    site = site_of_tables(tmp_path_factory.mktemp("published"), export)
    assert site.night().published
    return site


@pytest.fixture
def after_a_night(published: Site, tmp_path: Path) -> Site:
    """A copy of that site, to go on with."""
    return published.copy(tmp_path)


@pytest.fixture
def ct_site(tmp_path: Path, export: Path) -> Site:
    """A site with the CT of two patients."""
    site = site_of_tables(tmp_path, export)
    for number, patient in enumerate(["P000001", "P000002"]):
        write_series(tmp_path / "ct" / str(number), PatientID=patient, SeriesInstanceUID=f"2.25.{number + 77}")
    site.config |= {"modalities": {"ct": {"path": "ct", "encoder": {"name": "random-dinov2", "width": 1024}}}}
    return site


def opens(layout: Layout) -> None:
    """Trainers can read every split, and every check of `timeloom verify` holds."""
    release = Release.open(layout.root)
    for split in ("train", "tuning", "held_out"):
        assert list(release.shards("mehrt", split=split).batches(2))
    wrong = [finding for finding in verify_release(layout.root) if not finding.ok]
    assert not wrong


def test_a_run_killed_after_pack_may_go_on_with_other_codes(site: Site) -> None:
    """The corrected code gets the id of the wrong one, so the timelines' bytes are the same."""
    site.change("medications", ",11202,", ",999001,")
    site.killed_before("validate")
    site.change("medications", ",999001,", ",999002,")
    site.night()
    opens(site.layout)
    assert "RXNORM/999002" in Release.open(site.layout.root).vocabulary("mehrt")["token"]


def test_a_new_code_leaves_the_shards_of_other_groups_alone(site: Site) -> None:
    site.config["pack_groups"] = 4
    site.night()
    before = {path.name: path.stat().st_ino for path in Release.open(site.layout.root).path.glob("shards/*/train/*")}
    labs = site.folder / "tables" / "labs.csv"
    first = labs.read_text(encoding="utf-8").splitlines()[1].split(",")
    first[0], first[3] = "L-new", "99999-9"
    with labs.open("a", encoding="utf-8") as file:
        file.write(",".join(first) + "\n")
    site.night()
    after = {path.name: path.stat().st_ino for path in Release.open(site.layout.root).path.glob("shards/*/train/*")}
    assert sum(before[name] != after[name] for name in before) <= 1
    opens(site.layout)


def test_a_lost_private_folder_stops_the_run(site: Site) -> None:
    site.config["deid"] = {"mode": "expert"}
    site.night()
    before = site.splits()
    kept = site.layout.private.with_name("kept")
    site.layout.private.rename(kept)
    with pytest.raises(TimeloomError, match="no de-identification key; restore"):
        site.night()
    shutil.copytree(kept, site.layout.private)
    (site.layout.private / "deid.key").write_text("11" * 32 + "\n")
    with pytest.raises(TimeloomError, match="another de-identification key"):
        site.night()
    shutil.rmtree(site.layout.private)
    kept.rename(site.layout.private)
    site.night()
    assert site.splits() == before


def test_images_that_are_away_are_no_verdict(ct_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    away = ct_site.folder / "away"
    carry_out = flow.Run.carry_out

    def unmounted(run: Run, name: str, step: Callable[[], None]) -> dict[str, Any]:
        if name != "embed":
            return carry_out(run, name, step)
        (ct_site.folder / "ct").rename(away)
        try:
            return carry_out(run, name, step)
        finally:
            away.rename(ct_site.folder / "ct")

    with monkeypatch.context() as patch:
        patch.setattr(flow.Run, "carry_out", unmounted)
        with pytest.raises(TimeloomError, match="cannot be opened now"):
            ct_site.night()
    assert current_release(ct_site.layout) is None
    ct_site.night()
    assert Release.open(ct_site.layout.root).manifest.verdicts == {"ct": {"ok": 2}}


def test_lost_vectors_are_made_again(ct_site: Site) -> None:
    ct_site.night()
    stores = sorted(ct_site.layout.root.glob("embeddings/**/*.lmdb"))
    assert stores
    stores[0].unlink()
    assert not all(finding.ok for finding in verify_release(ct_site.layout.root))
    outcome = ct_site.night()
    assert not outcome.published
    opens(ct_site.layout)


def test_a_file_that_was_lost_is_published_again(after_a_night: Site) -> None:
    site = after_a_night
    release = current_release(site.layout)
    assert release is not None
    lost = release.events(1)
    content = lost.read_bytes()
    lost.unlink()
    second = site.night()
    assert second.published
    healed = current_release(site.layout)
    assert healed is not None
    assert healed.path != release.path
    assert healed.events(1).read_bytes() == content
    opens(site.layout)


def test_a_date_without_a_time_is_the_end_of_its_day(ct_site: Site) -> None:
    dateless = {"AcquisitionDate": "", "AcquisitionTime": "", "SeriesDate": "", "SeriesTime": "", "StudyTime": ""}
    write_series(
        ct_site.folder / "ct" / "dated",
        PatientID="P000003",
        SeriesInstanceUID="2.25.991",
        StudyDate="20200105",
        **dateless,
    )
    ct_site.config["deid"] = {"mode": "limited", "dates": "keep"}
    ct_site.night()
    items = Release.open(ct_site.layout.root).items().filter(pl.col("time_precision") == "day").collect()
    assert items["time"].to_list() == [datetime(2020, 1, 5, 23, 59, 59, 999999)]
    assert items["available_time"].to_list() == items["time"].to_list()


def test_a_scheme_that_comes_back_moves_nobody(after_a_night: Site) -> None:
    site = after_a_night
    before = site.splits()
    site.config["profiles"] = {"second": {"rules": "mehrt"}}
    site.config["splits"] = {"other": {"train": 0.5, "tuning": 0.25, "held_out": 0.25}}
    site.night()
    assert site.splits() != before
    del site.config["splits"], site.config["profiles"]
    site.night()
    assert site.splits() == before


def test_a_profile_that_comes_back_keeps_its_ids(site: Site) -> None:
    site.config["profiles"] = {"mehrt": {}, "other": {"context": 512}}
    site.night()
    before = Release.open(site.layout.root).vocabulary("other")
    site.config["profiles"] = {"mehrt": {}}
    site.change("medications", ",11202,", ",999001,")
    site.night()
    site.config["profiles"] = {"mehrt": {}, "other": {"context": 512}}
    site.night()
    after = Release.open(site.layout.root).vocabulary("other")
    both = before.join(after, on="token_id")
    assert both.height == before.height
    assert both["token"].to_list() == both["token_right"].to_list()


@pytest.mark.parametrize("copied", [False, True], ids=["current is gone", "current is a directory"])
def test_a_root_without_its_pointer_is_no_new_root(after_a_night: Site, copied: bool) -> None:
    site = after_a_night
    release = site.layout.current.resolve()
    site.layout.current.unlink()
    if copied:
        shutil.copytree(release, site.layout.current)
    with pytest.raises(TimeloomError, match="`current` is no link"):
        site.night()


def test_two_overlapping_exports_count_each_row_once(after_a_night: Site) -> None:
    site = after_a_night
    alone = Release.open(site.layout.root).events().select("subject_id", "time", "code", "numeric_value").collect()
    shutil.copytree(site.folder / "tables", site.folder / "again")
    site.layout = Layout(site.folder / "both")
    site.config["sources"].append({"source": "simulated-hospital", "path": "again"})
    site.night()
    both = Release.open(site.layout.root).events().select(alone.columns).collect()
    order = alone.columns
    assert both.sort(order).equals(alone.sort(order))


def test_two_equal_files_that_nobody_mapped_are_both_accounted_for(site: Site) -> None:
    for name in ("DOE_JANE.csv", "ROE_JOHN.csv"):
        (site.folder / "tables" / name).write_text("a,b\n1,2\n3,4\n")
    site.night()
    release = Release.open(site.layout.root)
    ledger = pl.read_parquet(release.files.ledger)
    unmapped = ledger.filter(pl.col("reason") == "unmapped_table")
    assert unmapped["rows"].to_list() == [2, 2]
    for path in site.layout.root.rglob("*"):
        if path.is_file():
            assert b"DOE_JANE" not in path.read_bytes(), path


def test_a_trial_and_the_whole_do_not_share_a_root(after_a_night: Site) -> None:
    site = after_a_night
    with pytest.raises(TimeloomError, match="--limit"):
        site.night(limit=5)
    site.layout = Layout(site.folder / "trial")
    site.night(limit=5)
    assert len(site.splits()) == 5
    with pytest.raises(TimeloomError, match="--limit"):
        site.night()


def test_another_declaration_is_another_release(site: Site) -> None:
    site.config["deid"] = {"mode": "expert"}
    site.night()
    site.config["deid"] = {"mode": "limited"}
    outcome = site.night()
    assert outcome.published
    assert Release.open(site.layout.root).manifest.deid.mode == "limited"


def test_publishing_twice_in_one_run_is_harmless(site: Site) -> None:
    config = parse_config(site.config, site.folder, "test")
    with Run(config, site.folder, site.layout, LocalEngine(1)) as run:
        for name, step in run.steps:
            run.carry_out(name, step)
        run.carry_out("publish", dict(run.steps)["publish"])
        assert run.outcome().published
    assert not list(site.layout.work.iterdir())
    opens(site.layout)


def test_a_flipped_bit_is_not_published_again(after_a_night: Site) -> None:
    site = after_a_night
    release = current_release(site.layout)
    assert release is not None
    path = release.events(2)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    outcome = site.night()
    assert outcome.published
    opens(site.layout)


def test_healing_that_was_killed_is_finished(after_a_night: Site) -> None:
    site = after_a_night
    release = current_release(site.layout)
    assert release is not None
    release.events(1).unlink()
    site.killed_before("pack")
    outcome = site.night()
    assert outcome.published
    opens(site.layout)


def test_a_first_run_that_failed_binds_nothing(site: Site) -> None:
    tables = site.config["sources"][0]["path"]
    site.config["sources"][0]["path"] = "nowhere"
    site.config["deid"] = {"mode": "expert"}
    with pytest.raises(TimeloomError, match=r"does not exist: .*nowhere"):
        site.night()
    site.config["sources"][0]["path"] = tables
    site.config["deid"] = {"mode": "synthetic", "dates": "keep"}
    site.night()


def test_ids_that_were_merged_across_splits_are_set_aside_until_the_merge_is_taken_back(after_a_night: Site) -> None:
    site = after_a_night
    before = site.splits()
    raw = pl.read_csv(site.folder / "tables" / "patients.csv")["patient_id"]
    deid = parse_config(site.config, site.folder, "test").deid
    ids = dict(zip(raw, Deidentifier(deid, load_key(deid, site.layout.private)).subject_ids(raw), strict=True))
    old = next(subject for subject in raw if before[ids[subject]] == "held_out")
    new = next(subject for subject in raw if before[ids[subject]] == "train")
    site.config["merges"] = "merges.csv"
    # Found out before anything is read, not hours later.
    with pytest.raises(TimeloomError, match="cannot read the merges"):
        site.killed_before("embed")
    (site.folder / "merges.csv").write_text(f"old,new\n{old},{new}\nnobody,{new}\n", encoding="utf-8")
    site.night()
    assert "split: 1 ids of the merges are in no table" in "".join(
        log.read_text(encoding="utf-8") for log in site.layout.logs.glob("*.log")
    )
    assert before.items() - site.splits().items() == {(ids[old], "held_out"), (ids[new], "train")}
    release = Release.open(site.layout.root)
    read = {
        subject
        for split in ("train", "tuning", "held_out")
        for batch in release.shards("mehrt", split=split).batches(4)
        for subject in batch.subject_ids.tolist()
    }
    assert read == site.splits().keys()
    del site.config["merges"]
    site.night()
    assert site.splits() == before


def test_events_of_a_split_are_those_of_the_scheme_that_is_named(site: Site) -> None:
    site.config["splits"] = {"mehrt": None, "other": {"train": 0.5, "tuning": 0.25, "held_out": 0.25}}
    site.config["profiles"] = {"mehrt": {}, "second": {"rules": "mehrt", "scheme": "other"}}
    site.night()
    release = Release.open(site.layout.root)
    for profile, scheme in (("mehrt", None), ("second", "other")):
        batches = release.shards(profile, split="train").batches(8)
        packed = {subject for batch in batches for subject in batch.subject_ids.tolist()}
        found = release.events("train", scheme).select("subject_id").unique().collect()["subject_id"]
        assert set(found) == packed == set(release.splits(scheme).filter(split="train")["subject_id"])
    assert set(release.events("held_out").collect()["subject_id"]) <= set(release.splits()["subject_id"])
    with pytest.raises(TimeloomError, match="no split scheme third; choose one of: mehrt, other"):
        release.events("train", "third")


def test_a_vocabulary_is_not_carried_to_another_scheme(after_a_night: Site) -> None:
    site = after_a_night
    site.config["splits"] = {"other": {"train": 0.5, "tuning": 0.25, "held_out": 0.25}}
    with pytest.raises(TimeloomError, match="the vocabulary of mehrt was fitted with scheme mehrt, not other"):
        site.night()


def test_a_damaged_ledger_of_another_scheme_is_not_carried_on(after_a_night: Site) -> None:
    site = after_a_night
    site.config["profiles"] = {"second": {"rules": "mehrt"}}
    site.config["splits"] = {"other": {"train": 0.85, "tuning": 0.05, "held_out": 0.1}}
    site.night()
    release = current_release(site.layout)
    assert release is not None
    path = release.split_ledger("mehrt")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TimeloomError, match=r"splits/mehrt/ledger.parquet of the current release is damaged"):
        site.night()


class WithStain(WsiSettings):
    """Slides with a setting that this version does not know yet."""

    stain: str = "HE"


def test_a_setting_for_slides_indexes_no_ct_anew(ct_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ct_site.folder
    write_tiff(folder / "slides" / "a.svs", stained(), 0.5)
    (folder / "slides.csv").write_text("match,subject_id,time\na.svs,P000001,2021-02-03 04:05:06\n")
    encoder = {"name": "random-dinov2", "width": 1536}
    slides = {"path": "slides", "crosswalk": {"file": "slides.csv"}, "encoder": encoder}
    ct_site.config["modalities"]["wsi"] = slides

    def indexed() -> dict[str, dict[str, int]]:
        """By modality, the segments and when each was written."""
        ct_site.killed_before("embed")
        paths = {name: ct_site.layout.segments.glob(f"items-{name}-*.parquet") for name in ("ct", "wsi")}
        return {name: {path.name: path.stat().st_mtime_ns for path in found} for name, found in paths.items()}

    first = indexed()
    assert {name: len(found) for name, found in first.items()} == {"ct": 1, "wsi": 1}
    assert indexed() == first
    monkeypatch.setitem(EXTRACTORS, "wsi", replace(EXTRACTORS["wsi"], settings=WithStain))
    slides["stain"] = "PAS"
    second = indexed()
    assert second["ct"] == first["ct"], "the fingerprint of CT's task and what it wrote are the old ones"
    assert first["wsi"].keys() < second["wsi"].keys(), "slides are indexed anew"
