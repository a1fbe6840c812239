"""Where everything lies under a root. No other module spells a path."""

from dataclasses import dataclass
from pathlib import Path


def bucket_name(bucket: int) -> str:
    """The file stem of a bucket, `0007`."""
    return f"{bucket:04d}"


@dataclass(frozen=True)
class ReleaseLayout:
    """Paths inside one release, or inside the staging tree that will become one."""

    path: Path

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    def events(self, bucket: int) -> Path:
        return self.path / "data" / f"{bucket_name(bucket)}.parquet"

    @property
    def dataset_metadata(self) -> Path:
        return self.path / "metadata" / "dataset.json"

    @property
    def codes(self) -> Path:
        return self.path / "metadata" / "codes.parquet"

    @property
    def subject_splits(self) -> Path:
        return self.path / "metadata" / "subject_splits.parquet"

    def items(self, bucket: int) -> Path:
        return self.path / "items" / f"{bucket_name(bucket)}.parquet"

    def texts(self, bucket: int) -> Path:
        """Texts of usable items, where the configuration keeps them."""
        return self.path / "texts" / f"{bucket_name(bucket)}.parquet"

    def subjects(self, bucket: int) -> Path:
        """One row a subject: the statistics that splits are stratified by."""
        return self.path / "subjects" / f"{bucket_name(bucket)}.parquet"

    def split_ledger(self, scheme: str) -> Path:
        """Every subject that was ever seen, with its split: append-only."""
        return self.path / "splits" / scheme / "ledger.parquet"

    def split_freeze(self, scheme: str) -> Path:
        """What was decided when the scheme was first used, and the checksum of its ledger."""
        return self.path / "splits" / scheme / "freeze.json"

    def scheme_subjects(self, scheme: str) -> Path:
        """The release's subjects, each with its split and its place in the order of subsets."""
        return self.path / "splits" / scheme / "subjects.parquet"

    def split_quarantine(self, scheme: str) -> Path:
        """Subjects that have no split, and why."""
        return self.path / "splits" / scheme / "quarantined.parquet"

    def vocabulary(self, profile: str) -> Path:
        return self.path / "vocabularies" / profile / "vocabulary.parquet"

    def quantiles(self, profile: str) -> Path:
        return self.path / "vocabularies" / profile / "quantiles.parquet"

    def coverage(self, profile: str) -> Path:
        """Tokens, unknown ones and what was left out, by split and namespace."""
        return self.path / "vocabularies" / profile / "coverage.parquet"

    def codes_of(self, bucket: int) -> Path:
        """Events per code of one bucket."""
        return self.path / "codes" / f"{bucket_name(bucket)}.parquet"

    def contents(self, bucket: int) -> Path:
        """What each subject of one bucket is made of, as a hash: what the next release is compared with."""
        return self.path / "contents" / f"{bucket_name(bucket)}.parquet"

    def token_counts(self, profile: str, bucket: int) -> Path:
        return self.path / "vocabularies" / profile / "counts" / f"{bucket_name(bucket)}.parquet"

    def timeline(self, profile: str, bucket: int) -> Path:
        return self.path / "timelines" / profile / f"{bucket_name(bucket)}.parquet"

    def shard(self, profile: str, split: str, group: int, plan: str | None = None) -> Path:
        """A shard of a profile's own plan, or of a further one."""
        folder = profile if plan in (None, "default") else f"{profile}.{plan}"
        return self.path / "shards" / folder / split / f"{group:04d}.parquet"

    def derived(self, bucket: int) -> Path:
        """Events that are worked out for labels alone."""
        return self.path / "derived" / f"{bucket_name(bucket)}.parquet"

    def labels(self, task: str, bucket: int) -> Path:
        """A task's labels, as MEDS has them."""
        return self.path / "labels" / task / f"{bucket_name(bucket)}.parquet"

    def attrition(self, bucket: int) -> Path:
        """Whom the rules of every task leave out."""
        return self.path / "attrition" / f"{bucket_name(bucket)}.parquet"

    def subset(self, profile: str, plan: str) -> Path:
        """Which tier of a plan's token budgets each train subject is in."""
        return self.path / "subsets" / f"{profile}.{plan}.parquet"

    @property
    def copies(self) -> Path:
        """Items that have copies, and which of them are set aside."""
        return self.path / "duplicates" / "copies.parquet"

    def triplets(self, bucket: int) -> Path:
        return self.path / "triplets" / f"{bucket_name(bucket)}.parquet"

    def funnel(self, bucket: int) -> Path:
        """What became of every study, text and subject that might have made a triplet."""
        return self.path / "triplets" / "funnel" / f"{bucket_name(bucket)}.parquet"

    @property
    def graph_codes(self) -> Path:
        """Codes of visit graphs, and their numbers."""
        return self.path / "graphs" / "codes.parquet"

    def graph_visits(self, bucket: int) -> Path:
        return self.path / "graphs" / "visits" / f"{bucket_name(bucket)}.parquet"

    def graph_nodes(self, bucket: int) -> Path:
        return self.path / "graphs" / "nodes" / f"{bucket_name(bucket)}.parquet"

    def graph_edges(self, bucket: int) -> Path:
        return self.path / "graphs" / "edges" / f"{bucket_name(bucket)}.parquet"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.parquet"

    @property
    def quarantine(self) -> Path:
        """Which raw rows made nothing, and why."""
        return self.path / "quarantine.parquet"

    @property
    def lags(self) -> Path:
        """How long after its time each code's fact usually becomes available."""
        return self.path / "lags.parquet"

    def measures(self, area: str, *names: str) -> Path:
        """What is measured of one bucket, or of one part of a shard: `area` is a key of MEASURES."""
        folder = self.measured / area
        return folder.joinpath(*names[:-1]) / f"{names[-1]}.parquet"

    @property
    def measured(self) -> Path:
        """The folder of all that is measured of the release."""
        return self.path / "measures"

    @property
    def quality(self) -> Path:
        return self.path / "quality"

    @property
    def report(self) -> Path:
        return self.path / "quality" / "report.html"


@dataclass(frozen=True)
class Layout:
    """Paths of a root."""

    root: Path

    @property
    def settings(self) -> Path:
        """What was fixed when the root was created: the number of buckets."""
        return self.root / "root.json"

    @property
    def current(self) -> Path:
        return self.root / "current"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def segments(self) -> Path:
        return self.root / "segments"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def past(self) -> Path:
        """Where past nights are made again."""
        return self.root / "backfill"

    @property
    def conversion(self) -> Path:
        """What `timeloom meds` keeps from one conversion to the next."""
        return self.root / "conversion"

    @property
    def set_aside(self) -> Path:
        """What could not be opened any more and was put out of the way by a repair."""
        return self.root / "set-aside"

    @property
    def lineage(self) -> Path:
        return self.root / "lineage"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def announced(self) -> Path:
        """The release that the site's own command was last told of."""
        return self.root / "announced.json"

    @property
    def serve_lock(self) -> Path:
        """Held by the `timeloom serve` of this root."""
        return self.root / ".serve.lock"

    @property
    def prefect(self) -> Path:
        """Beside the root: the home of the Prefect server that `timeloom serve` runs for it."""
        return self.root.with_name(f"{self.root.name}.prefect")

    def embeddings(self, modality: str, store: str) -> Path:
        return self.root / "embeddings" / modality / store

    def embedding_bucket(self, modality: str, store: str, bucket: int) -> Path:
        return self.embeddings(modality, store) / f"{bucket_name(bucket)}.lmdb"

    @property
    def wanted(self) -> Path:
        """Which buckets of which stores lack vectors, for workers on any machine."""
        return self.root / "embeddings" / "wanted.json"

    @property
    def private(self) -> Path:
        """Beside the root, never in it: the key, and what ties de-identified items to raw files."""
        return self.root.with_name(f"{self.root.name}.private")

    @property
    def unmapped_files(self) -> Path:
        """By what a release calls a file that no rule mentions, the name that it has on this machine."""
        return self.private / "unmapped.json"

    @property
    def scanned(self) -> Path:
        """What each file of a tree of images was found to be, in the hospital's own words."""
        return self.private / "scanned"

    @property
    def digests(self) -> Path:
        """What pictures and texts are compared by, to find copies."""
        return self.private / "digests"

    @property
    def grouped(self) -> Path:
        """The items that those files make, in the hospital's own words."""
        return self.private / "grouped"

    @property
    def private_records(self) -> tuple[Path, ...]:
        """Folders of the private one in which each file has a record that says what was written."""
        return self.scanned, self.grouped, self.digests
