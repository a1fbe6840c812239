"""A MIMIC patient with CT, slide, ECG, x-ray and note of other people: one release, a batch with all five, a triplet.

The ties are artificial, and every item says so.
"""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.engine.local import LocalEngine
from tests.support.nights.site import Site
from validation.verify import verify_release
from warehouse import Release
from warehouse.hashing import splitmix64

SUBJECTS = 8
WIDTHS = {"ct": 1024, "wsi": 1536, "ecg": 768, "cxr": 512, "note": 256}
FIVE = tuple(WIDTHS)
# What the crosswalks name.
NAMED = {"ct": "STS_008", "wsi": "cmu-1-small-region.svs", "ecg": "E07500", "cxr": "NIH 1", "note": "D2N001"}


@pytest.fixture(scope="module")
def subject(real_data: Path) -> int:
    """Of the demo's subjects the one whose hash is least: it is part of every trial."""
    ids = pl.read_csv(real_data / "mimic-iv-demo-2.2" / "hosp" / "patients.csv.gz")["subject_id"]
    return int(ids[int(np.argmin(splitmix64(ids.to_numpy())))])


@pytest.fixture(scope="module")
def site(real_data: Path, subject: int, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A trial of the demo, published, in which one subject has all five."""
    folder = tmp_path_factory.mktemp("five")
    admitted = (
        pl.read_csv(real_data / "mimic-iv-demo-2.2" / "hosp" / "admissions.csv.gz", infer_schema=False)
        .filter(pl.col("subject_id") == str(subject))["admittime"]
        .str.to_datetime()
        .min()
    )
    for place, (modality, match) in enumerate(NAMED.items()):
        time = pl.select(pl.lit(admitted) + pl.duration(hours=6 + place)).item()
        lines = ["match,subject_id,time", f"{match},{subject},{time:%Y-%m-%d %H:%M:%S}"]
        (folder / f"{modality}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    (folder / "notes").mkdir()
    (folder / "notes" / "visits.csv").symlink_to(real_data / "notes" / "aci-bench" / "train.csv")
    films = ["image,subject_id,view", f"00000001_000.png,{NAMED['cxr']},PA"]
    (folder / "films.csv").write_text("\n".join(films) + "\n", encoding="utf-8")

    def crosswalk(modality: str, match: str) -> dict[str, Any]:
        return {"file": str(folder / f"{modality}.csv"), "match": match, "artificial": True}

    def encoder(modality: str, name: str = "random-dinov2", output: str = "mean") -> dict[str, Any]:
        return {"name": name, "width": WIDTHS[modality], "output": output}

    modalities = {
        "ct": {
            "path": str(real_data / "ct-ibsi-sts" / "STS_008"),
            "crosswalk": crosswalk("ct", "patient_id"),
            "encoder": encoder("ct"),
        },
        "wsi": {
            "path": str(real_data / "wsi"),
            "crosswalk": crosswalk("wsi", "path"),
            "encoder": encoder("wsi"),
        },
        "ecg": {
            "path": str(real_data / "ecg" / "cinc2021"),
            "crosswalk": crosswalk("ecg", "path"),
            "encoder": encoder("ecg", "random-ecg", "sequence"),
        },
        "cxr": {
            "path": str(real_data / "cxr"),
            "table": {"file": str(folder / "films.csv"), "partial": True},
            "crosswalk": crosswalk("cxr", "patient_id"),
            "encoder": encoder("cxr"),
        },
        "note": {
            "path": str(folder / "notes"),
            "rules": {"visits": {"text": "note", "id": "encounter_id"}},
            "crosswalk": crosswalk("note", "note_id"),
            "keep_text": True,
            "encoder": encoder("note", "random-bert", "sequence"),
        },
    }
    made = Site(
        folder,
        {
            "sources": [{"source": "mimic-iv", "path": str(real_data / "mimic-iv-demo-2.2")}],
            "deid": {"mode": "limited", "subject_ids": "keep", "dates": "keep"},
            "buckets": 2,
            "modalities": modalities,
            "graphs": {},
            "duplicates": {},
            "triplets": {"images": ["cxr"]},
        },
    )
    made.night(LocalEngine(2), limit=SUBJECTS)
    return made


def test_the_release_is_whole_and_says_that_the_ties_are_made_up(site: Site, subject: int) -> None:
    assert [finding for finding in verify_release(site.layout.root) if not finding.ok] == []
    items = Release.open(site.layout.root).items().filter(pl.col("verdict") == "ok").collect()
    assert items.select("subject_id", "modality").sort("modality").rows() == [
        (subject, modality) for modality in sorted(FIVE)
    ]
    assert items["artificial_link"].all()


def test_a_batch_holds_all_five(site: Site, subject: int) -> None:
    release = Release.open(site.layout.root)
    splits = release.splits(release.manifest.profiles["mehrt"].scheme)
    split = splits.filter(pl.col("subject_id") == subject)["split"][0]
    packs = release.shards("mehrt", split=split, vectors="sequences")
    (batch,) = (batch for batch in packs.batches(8) if all(len(batch.item_vectors[modality]) for modality in FIVE))
    for modality, width in WIDTHS.items():
        vectors = batch.item_vectors[modality]
        assert vectors.shape == (1, width) and vectors.isfinite().all() and vectors.any()
        assert batch.subject_ids[batch.item_segment[modality]].tolist() == [subject]
        units = batch.item_units[modality]
        assert units.shape == (int(batch.item_lengths[modality].sum()), width)
        assert (len(units) > 50) == (modality in ("ecg", "note"))  # they are stored as sequences of tokens
        # The item as the release keeps it, read alone.
        alone = release.vector(modality, batch.item_keys[modality][0])
        assert np.allclose(alone.reshape(-1, width).mean(axis=0), vectors[0].numpy(), rtol=1e-2, atol=1e-2)


def test_the_film_the_note_and_the_record_are_a_triplet(site: Site, subject: int, real_data: Path) -> None:
    """The film is taken nine hours after an admission of the patient, and the note an hour later."""
    release = Release.open(site.layout.root)
    (triplet,) = release.triplets().frame(every=True).to_dicts()
    items = release.items().filter(pl.col("verdict") == "ok").collect()
    keys = {modality: items.filter(pl.col("modality") == modality)["item_key"].item() for modality in ("cxr", "note")}
    assert (triplet["subject_id"], triplet["source"]) == (subject, "cxr")
    assert (triplet["image_keys"], triplet["prior_flags"]) == ([keys["cxr"]], [False])
    assert (triplet["text_key"], triplet["text_role"]) == (keys["note"], "report")
    assert (triplet["has_ehr"], triplet["link_rule"], triplet["set_aside"]) == (True, "admission", None)
    assert triplet["ehr_cutoff_time"] == triplet["image_times"][0] < triplet["text_time"]
    assert triplet["visit_ids"][-1] == triplet["visit_id"]
    notes = pl.read_csv(real_data / "notes" / "aci-bench" / "train.csv", infer_schema=False)
    written = notes.filter(pl.col("encounter_id") == NAMED["note"])["note"].item()
    begins, ends = triplet["sentence_begins"], triplet["sentence_ends"]
    assert len(begins) == len(ends) > 10 and max(ends) <= len(written)
    visits = release.graphs().of_subject(subject, until=triplet["ehr_cutoff_time"])
    assert visits and sum(visit.num_nodes["lab"] for visit in visits) > 0
    found = release.manifest.duplicates
    assert found is not None and found.found["cxr"]["exact"]["compared"] == 1
