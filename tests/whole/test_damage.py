"""Every kind of file under a root, damaged: `verify` names it, what opens it refuses it, its printed remedy heals it.

The list is that of a real root of two releases, so that a new kind of file without a row of its own fails here. With
`-s` the table is printed: `pytest tests/whole/test_damage.py -s -k named`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from embedders.encoders.golden import _read as read_golden
from embedders.running.store_bucket import read_verdicts
from flows.commands.repair import Repaired, repair
from flows.commands.status import describe
from flows.runs.root import read_root
from flows.runs.settings import RunSettings
from pipelines.aligning.segments import SegmentReader
from pipelines.dealing import wanted_of
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.run_stage import load_record
from pipelines.group import has_kept
from pipelines.index import has_places
from tests.support.nights.damage import HARMS, files_of, flip, kind_of
from tests.support.nights.site import Site, site_of_images
from tests.support.notes import write_discharge
from validation import verify
from validation.areas import registry
from validation.damage import RESTORE_KEY, find_damage
from validation.verify import Finding, verify_release
from warehouse import Release
from warehouse.embeddings.store import close_stores
from warehouse.errors import REPAIR, TimeloomError
from warehouse.layout import Layout, ReleaseLayout
from warehouse.parquet import read_frame
from warehouse.publish import current_release
from warehouse.sealed import write_sealed

# Takes a root and the damaged file; True where it is refused, or not believed.
Opens = Callable[[Layout, Path], bool]


def refused(read: Callable[[], Any]) -> bool:
    """Whether a reader says in one line that a file is damaged."""
    try:
        read()
    except TimeloomError as error:
        return "\n" not in str(error) and bool(error.remedy)
    return False


def of_release(read: Callable[[Release], Any]) -> Opens:
    return lambda layout, _: refused(lambda: read(Release.open(layout.root)))


def checked(layout: Layout, path: Path) -> bool:
    """What a reader of the release asks before it opens any of its files; a run asks the same before it links one."""
    return refused(lambda: Release.open(layout.root).checked(path))


def shards(plan: str) -> Opens:
    def read(release: Release) -> None:
        for name, profile in release.manifest.profiles.items():
            for split in ("train", "tuning", "held_out") if plan in profile.plans else ():
                list(release.shards(name, split=split, plan=plan).batches(4))

    return of_release(read)


def vectors(release: Release) -> None:
    usable = release.items().filter(pl.col("verdict") == "ok").select("modality", "item_key").collect()
    for modality, key in usable.iter_rows():
        release.vector(modality, key)


def segment(_: Layout, path: Path) -> bool:
    record = load_record(path.with_suffix(".json"))
    assert record is not None

    def read() -> None:
        with SegmentReader(path) as reader:
            for bucket in record.counts["buckets"].values():
                for piece in bucket["pieces"]:
                    reader.blob(piece)
            for piece in record.counts["blobs"].values():
                reader.texts(piece)

    kept = {part: part.read_bytes() for part in (path, path.with_suffix(".json"))}
    refusal = refused(read)
    # The reader removes both, so that the next night makes them.
    for part, data in kept.items():
        part.write_bytes(data)
    return refusal


def unbelieved_record(_: Layout, path: Path) -> bool:
    return load_record(path) is None


def unbelieved_output(_: Layout, path: Path) -> bool:
    record = load_record(path.with_suffix(".json"))
    return record is not None and not record.files[path.name].is_of(path)


def unbelieved_places(layout: Layout, path: Path) -> bool:
    params: Any = {"private": str(layout.private), "segment": path.name}
    return not has_places(params, layout.segments)


def unbelieved_kept(layout: Layout, path: Path) -> bool:
    params: Any = {"out": f"{path.parent.name}.parquet"}
    return not has_kept(params, layout.grouped)


def unbelieved_hashes(layout: Layout, _: Path) -> bool:
    return not Fingerprints(layout.private)._known


@dataclass(frozen=True)
class Row:
    """What a kind of file must show.

    Attributes:
        opens: what opens it; None where nothing does.
        remedy: what `verify` prints for it; empty where its content is of no use to anything.
    """

    opens: Opens | None = checked
    remedy: str = REPAIR


NOT_OPENED = Row(None)
OF_NO_CONTENT = Row(None, "")  # a lock, or words for people that nothing reads
STATE = ("lags.parquet", "splits/SCHEME/ledger.parquet", "splits/SCHEME/freeze.json",
         "vocabularies/PROFILE/vocabulary.parquet", "vocabularies/PROFILE/vocabulary.json",
         "vocabularies/PROFILE/quantiles.parquet")  # fmt: skip
RELEASE = {
    **dict.fromkeys(STATE, Row()),
    "manifest.json": Row(of_release(lambda release: release)),
    "data/N.parquet": Row(of_release(lambda release: release.events().collect())),
    "items/N.parquet": Row(of_release(lambda release: release.items().collect())),
    "splits/SCHEME/subjects.parquet": Row(of_release(lambda release: release.splits())),
    "vocabularies/PROFILE/vocabulary.parquet": Row(
        of_release(lambda release: [release.vocabulary(name) for name in release.manifest.profiles])
    ),
    "shards/PROFILE/SPLIT/N.parquet": Row(shards("default")),
    "shards/PROFILE.PLAN/SPLIT/N.parquet": Row(shards("nested")),
    "quality/tables.json": Row(lambda layout, _: refused(lambda: describe(layout.root))),
    **dict.fromkeys(
        ["codes/N.parquet", "subjects/N.parquet", "metadata/codes.parquet", "metadata/dataset.json", "ledger.parquet",
         "metadata/subject_splits.parquet", "quarantine.parquet", "splits/SCHEME/quarantined.parquet",
         "subsets/PROFILE.PLAN.parquet", "timelines/PROFILE/N.parquet", "vocabularies/PROFILE/coverage.parquet",
         "vocabularies/PROFILE/counts/N.parquet", "vocabularies/PROFILE/counts/N.values.parquet",
         "quality/report.html", "quality/NAME.parquet", "quality/NAME.png", "quality/data_docs/FILE",
         "derived/N.parquet", "labels/TASK/N.parquet", "attrition/N.parquet", "duplicates/copies.parquet",
         "triplets/N.parquet", "triplets/funnel/N.parquet", "graphs/codes.parquet", "graphs/visits/N.parquet",
         "graphs/nodes/N.parquet", "graphs/edges/N.parquet", "contents/N.parquet", "measures/counts/N.parquet",
         "measures/counts/probes-N.parquet", "measures/counts/strata-N.parquet", "measures/counts/release.parquet",
         "measures/subjects/N.parquet",
         "measures/keys/N.parquet", "measures/lengths/PROFILE/N.parquet", "measures/gaps/PROFILE/N.parquet",
         "measures/timelines/PROFILE/N.parquet", "measures/losses/PROFILE/N.parquet",
         "measures/shards/PROFILE.PLAN/SPLIT/N-N.parquet", "measures/segments/PROFILE.PLAN/SPLIT/N-N.parquet"],
        Row(),
    ),
}  # fmt: skip
KINDS = {
    **{f"releases/ID/{name}": row for name, row in RELEASE.items()},
    "current": Row(of_release(lambda release: release)),
    "root.json": Row(lambda layout, _: refused(lambda: read_root(layout))),
    "lineage/RUN.json": NOT_OPENED,
    "segments/FILE-HASH.json": Row(unbelieved_record),
    "segments/FILE-HASH.segment": Row(segment),
    "segments/items-MODALITY-HASH.json": Row(unbelieved_record),
    "segments/items-MODALITY-HASH.parquet": Row(unbelieved_output),
    "embeddings/MODALITY/STORE/N.lmdb": Row(of_release(vectors)),
    "embeddings/MODALITY/STORE/N.verdicts.json": Row(
        lambda _, path: not read_verdicts(path.with_name(path.name.replace(".verdicts.json", ".lmdb")))
    ),
    "embeddings/MODALITY/STORE/encoder.json": Row(lambda _, path: refused(lambda: read_golden(path))),
    "private/fingerprints.json": Row(unbelieved_hashes),
    "private/unmapped.json": NOT_OPENED,
    "private/scanned/MODALITY-HASH.json": Row(unbelieved_record),
    "private/scanned/MODALITY-HASH.parquet": Row(unbelieved_output),
    "private/grouped/MODALITY-HASH.json": Row(unbelieved_record),
    "private/grouped/MODALITY-HASH.parquet": Row(unbelieved_output),
    "private/grouped/MODALITY-HASH/notes.arrow": Row(unbelieved_kept),
    "private/digests/N-HASH-HASH.json": Row(unbelieved_record),
    "private/digests/N-HASH-HASH.parquet": Row(unbelieved_output),
    "private/items/items-MODALITY-HASH.parquet": Row(unbelieved_places),
    "private/deid.key": Row(None, RESTORE_KEY),
    # Every run writes it anew, or removes it; workers do not believe a damaged one.
    "embeddings/wanted.json": Row(lambda layout, _: wanted_of(layout) is None, ""),
    "embeddings/MODALITY/STORE/N.lease": OF_NO_CONTENT,
    **dict.fromkeys(
        [".lock", "logs/RUN.log", "embeddings/MODALITY/STORE/N.lmdb-lock", "embeddings/MODALITY/STORE/N.writer"],
        OF_NO_CONTENT,
    ),
}


@pytest.fixture(scope="module")
def published(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A root with notes, CT and slides, one of which cannot be read, two profiles, and two releases."""
    folder = tmp_path_factory.mktemp("damage")
    for name in ("tables", "ct", "slides"):
        shutil.copytree(export / name, folder / "hospital" / name)
    slide = max((folder / "hospital" / "slides").glob("*.svs"), key=lambda path: path.stat().st_size)
    raw = bytearray(slide.read_bytes())
    raw[len(raw) // 3 : len(raw) // 2] = bytes(len(raw) // 2 - len(raw) // 3)
    slide.write_bytes(raw)
    site = site_of_images(folder, folder / "hospital")
    subjects = pl.read_csv(folder / "hospital" / "tables" / "patients.csv", n_rows=6).to_series()
    rows = [{"note_id": f"{number}", "subject_id": patient, "text": f"Seen {number}, no pain", "hadm_id": number,
             "charttime": "2021-03-04 05:06:07"} for number, patient in enumerate(subjects)]  # fmt: skip
    write_discharge(folder / "hospital" / "notes", rows)
    notes = {"path": str(folder / "hospital" / "notes"), "source": "mimic-iv"}
    site.config["modalities"]["note"] = notes | {"encoder": {"name": "random-bert", "width": 16}}
    site.config["deid"] = {"mode": "expert"}
    site.config["profiles"] |= {"ethos": {"rules": "ethos", "values": "pair"}}
    site.config |= {"graphs": {}, "duplicates": {"images": ["ct", "wsi"]}, "triplets": {}}
    (folder / "run.yaml").write_text(yaml.safe_dump(site.config, sort_keys=False))
    site.night()
    labs = folder / "hospital" / "tables" / "labs.csv"
    lines = labs.read_text().splitlines()
    labs.write_text("\n".join([*lines, lines[1].replace(",", "0,", 1)]) + "\n")
    assert site.night().published
    # What a night leaves that did not wait, and a worker that died.
    write_sealed(site.layout.wanted, {"token": "", "buckets": [], "stores": {}})
    store = next(site.layout.root.glob("embeddings/*/*/*.lmdb"))
    child = "import sys; from pathlib import Path; from warehouse.embeddings.bucket_lease import take; "
    subprocess.run([sys.executable, "-c", child + "take(Path(sys.argv[1]))", str(store)], check=True)
    close_stores()
    return site


@pytest.fixture
def copied(published: Site, tmp_path: Path) -> Iterator[Layout]:
    """A copy of the root, links between its releases kept, to be damaged and mended."""
    for name in ("warehouse", "warehouse.private"):
        subprocess.run(["cp", "-a", published.folder / name, tmp_path / name], check=True)
    shutil.copy(published.folder / "run.yaml", tmp_path)
    yield Layout(tmp_path / "warehouse")
    close_stores()


def current_of(layout: Layout) -> ReleaseLayout:
    release = current_release(layout)
    assert release is not None
    return release


def samples(layout: Layout) -> dict[str, tuple[str, Path]]:
    """By kind, a file of it that holds something, of the current release where releases have it."""
    current = f"releases/{current_of(layout).path.name}/"
    found: dict[str, tuple[str, Path]] = {}
    for name, path in files_of(layout.root):
        kind = kind_of(name)
        if name.startswith("releases/") and not name.startswith(current):
            continue
        if kind not in found or found[kind][1].stat().st_size < path.stat().st_size:
            found[kind] = name, path
    return found


def failed(layout: Layout, name: str) -> list[Finding]:
    """The findings of `verify` that name a file."""
    current = f"releases/{current_of(layout).path.name}/" if layout.current.is_dir() else " "
    names = {name, name.removeprefix(current), name.removeprefix("embeddings/")}
    return [
        finding
        for finding in verify_release(layout.root)
        if not finding.ok and any(part in finding.detail for part in names)
    ]


@pytest.fixture
def only_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` without what it measures of the release's meaning, and without a process of its own for vectors."""
    monkeypatch.setattr(registry, "AREAS", ())
    monkeypatch.setattr(verify, "NAMED", 1000)
    monkeypatch.setattr(verify, "_pool", lambda: ThreadPoolExecutor(1))


def test_every_kind_of_file_has_its_row(published: Site) -> None:
    found = {kind_of(name) for name, _ in files_of(published.layout.root)}
    assert found == set(KINDS)
    # And a test that carries out what `verify` prints for it.
    carried_out = {kind for kinds in GROUPS.values() for kind in kinds} | {"current", "private/deid.key"}
    assert carried_out == {kind for kind, row in KINDS.items() if row.remedy}


def test_a_flipped_byte_of_each_kind_is_named_and_refused(published: Site, only_bytes: None) -> None:
    layout, lines = published.layout, []
    assert not [finding for finding in verify_release(layout.root) if not finding.ok]
    for kind, (name, path) in sorted(samples(layout).items()):
        row = KINDS[kind]
        if not row.remedy or kind == "current":
            continue
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        flip(path)
        close_stores()
        findings = failed(layout, name) or failed(layout, "the manifest" if kind.endswith("manifest.json") else name)
        opened = row.opens is None or row.opens(layout, path)
        flip(path)
        os.utime(path, ns=times)
        close_stores()
        remedies = {finding.remedy for finding in findings}
        lines.append((kind, bool(findings), row.opens and opened, remedies))
        healed = "by repair" if row.remedy == REPAIR else "from backup"
        print(f"{kind:58} {'named' if findings else '-':8} {'refused' if row.opens else 'not opened':11} {healed}")
        assert findings, f"{name} is not named by verify"
        assert opened, f"{name} is believed"
        assert remedies == {row.remedy}
    assert len(lines) >= 35
    assert not [finding for finding in verify_release(layout.root) if not finding.ok]


@pytest.mark.parametrize("harm", ["cut", "emptied", "deleted"])
def test_what_is_cut_emptied_or_deleted_is_found(copied: Layout, harm: str) -> None:
    whole = {name for name, _ in files_of(copied.root)}
    assert find_damage(copied) == []
    for kind, (name, path) in sorted(samples(copied).items()):
        if not KINDS[kind].remedy or kind in ("current", "embeddings/MODALITY/STORE/N.lmdb"):
            continue
        kept = path.read_bytes()
        HARMS[harm](path)
        found = {damage.name: damage.missing for damage in find_damage(copied)}
        # In place, as files of releases are links.
        with path.open("wb") as file:
            file.write(kept)
        # Where the record of a segment is gone, nothing says what its file must be.
        assert found.pop(name, None) is (harm == "deleted"), f"{name} {harm}: {found}"
    assert {name for name, _ in files_of(copied.root)} == whole


def mend(layout: Layout) -> Repaired:
    """What REPAIR says."""
    try:
        return repair(RunSettings(layout.root.parent / "run.yaml", layout.root, workers=1))
    finally:
        close_stores()


def is_healed(layout: Layout) -> None:
    """Nothing is damaged, and what trainers read is there."""
    assert [finding for finding in verify_release(layout.root) if not finding.ok] == []
    release = Release.open(layout.root)
    for split in ("train", "tuning", "held_out"):
        assert list(release.shards("mehrt", split=split).batches(2))
    vectors(release)
    close_stores()


RECORDS = tuple(kind for kind in KINDS if kind.endswith("HASH.json"))
GROUPS = {
    "made anew": [f"releases/ID/{name}" for name in RELEASE if name not in (*STATE, "manifest.json")],
    "only grows": [f"releases/ID/{name}" for name in STATE],
    "manifest": ["releases/ID/manifest.json"],
    "beside": [
        kind
        for kind, row in KINDS.items()
        if not kind.startswith("releases/") and row.remedy == REPAIR and kind not in ("current", *RECORDS)
    ],
    "records": list(RECORDS),  # by themselves: where a record is damaged, nothing says what its file must be
}  # fmt: skip


HARMED = [*(("flipped", group) for group in GROUPS), *(("deleted", group) for group in list(GROUPS)[1:4])]


@pytest.mark.parametrize(("harm", "group"), HARMED)
def test_the_remedy_heals_to_the_same_bytes(copied: Layout, published: Site, harm: str, group: str) -> None:
    manifest, found = published.manifest, samples(copied)
    harmed = GROUPS[group]
    for kind in harmed:
        HARMS[harm](found[kind][1])
    done = mend(copied)
    assert done.left == []
    named = {found[kind][0] for kind in harmed if not kind.endswith(".lmdb")}
    assert named <= set(done.damaged)
    # Of vectors the night says which bucket's it made.
    assert all(name.startswith("stores of embed/") for name in set(done.damaged) - named)
    is_healed(copied)
    # The export is as it was, and so is all that is made of it: nothing is lost but how long steps took.
    assert Release.open(copied.root).manifest.content_hash == manifest.content_hash
    assert all(text.startswith("lineage/") for text in done.lost)


def test_a_damaged_key_is_restored_from_backup(copied: Layout, only_bytes: None) -> None:
    path = copied.private / "deid.key"
    backup = path.read_bytes()
    flip(path)
    for harmed in (False, True):
        if harmed:
            path.unlink()
        assert {finding.remedy for finding in failed(copied, "private/deid.key")} == {RESTORE_KEY}
        with pytest.raises(TimeloomError, match=r"^the de-identification key is damaged; restore deid\.key of"):
            mend(copied)
    path.write_bytes(backup)
    is_healed(copied)


@pytest.mark.parametrize("copy", [False, True], ids=["gone", "a folder"])
def test_a_pointer_that_is_none_is_mended(copied: Layout, copy: bool) -> None:
    release = current_of(copied).path
    copied.current.unlink()
    if copy:
        shutil.copytree(release, copied.current)
    findings = [finding for finding in verify_release(copied.root) if not finding.ok]
    assert {finding.check: finding.remedy for finding in findings}["root"] == REPAIR
    with pytest.raises(TimeloomError, match="`current` is no link to one of them; run `timeloom repair`"):
        Release.open(copied.root)
    assert mend(copied).left == []
    assert current_of(copied).path == release
    is_healed(copied)


def test_what_only_grows_goes_on_from_the_release_before_where_the_export_has_changed(copied: Layout) -> None:
    """The ledger of the second release is lost, and the raw table is not the one that it was drawn from."""
    first, second = sorted(path for path in copied.releases.iterdir())
    splits = dict(read_frame(ReleaseLayout(first).scheme_subjects("mehrt")).select("subject_id", "split").iter_rows())
    config = yaml.safe_load((copied.root.parent / "run.yaml").read_text())
    tables = copied.root.parent / "tables"
    shutil.copytree(config["sources"][0]["path"], tables)
    patients = tables / "patients.csv"
    header, *rows = patients.read_text().splitlines()
    another = rows[0].replace(rows[0].split(",")[0], "P999999", 1)
    patients.write_text("\n".join([header, *rows, another]) + "\n")
    config["sources"][0]["path"] = str(tables)
    (copied.root.parent / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    flip(ReleaseLayout(second).split_ledger("mehrt"))
    done = mend(copied)
    assert done.left == []
    assert f"splits/mehrt/ledger.parquet goes on from release {first.name}" in done.taken
    assert f"splits/mehrt/ledger.parquet as release {second.name} had it" in done.lost
    release = Release.open(copied.root)
    assert release.manifest.parent == first.name
    now = dict(release.splits().iter_rows())
    assert len(now) == len(splits) + 1
    assert splits.items() <= now.items()


def test_a_night_does_not_believe_damaged_vectors(copied: Layout, published: Site) -> None:
    """Keys alone were looked at: a damaged vector was published over."""
    path = samples(copied)["embeddings/MODALITY/STORE/N.lmdb"][1]
    flip(path)
    assert refused(lambda: vectors(Release.open(copied.root)))
    close_stores()
    site = Site(copied.root.parent, published.config)
    outcome = site.night()
    close_stores()
    assert [name for name in outcome.damaged if name.startswith("stores of embed/")] != []
    is_healed(copied)


@pytest.mark.parametrize("name", ["vocabularies/mehrt/coverage.parquet", "quality/report.html"])
def test_damage_alone_makes_a_night_publish(copied: Layout, published: Site, name: str) -> None:
    """They were said to be unchanged, while `verify` failed."""
    flip(current_of(copied).path / name)
    outcome = Site(copied.root.parent, published.config).night()
    assert outcome.published
    assert outcome.damaged == [name]
    close_stores()
    is_healed(copied)


def test_stores_that_cannot_be_walked_through_are_made_anew(copied: Layout) -> None:
    """One is cut short, of another the pages that say where everything is are gone."""
    first, second = [path for _, path in files_of(copied.root) if path.suffix == ".lmdb"][:2]
    HARMS["cut"](first)
    with second.open("r+b") as file:
        file.write(bytes(2 * 4096))
    findings = {finding.check: finding for finding in verify_release(copied.root) if not finding.ok}
    assert findings["vectors"].remedy == REPAIR
    done = mend(copied)
    assert done.left == []
    assert {path.relative_to(copied.root).as_posix() for path in (first, second)} <= set(done.damaged)
    is_healed(copied)
