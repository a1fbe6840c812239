"""Features of labels for models of tables: a bag of events, demographics, and mean vectors of items.

Sources: MEHRT's baselines (appendix B): codes of train, without those of under 1 % of train's patients, ICD-10 codes by
their first three characters, counts and not presence, gender, age at the first event and ethnicity, the mean of all
CT and slide vectors. Counts end at the prediction time, which the paper does not say.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.arrays import F32, I32, I64
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, write_json
from warehouse.hashing import bucket_of
from warehouse.parquet import read_frame
from warehouse.readers.pinned import PinnedRelease
from warehouse.readers.tasks.counting import (
    BIRTH,
    BucketCounts,
    Counted,
    LabelRows,
    Sparse,
    Units,
    event_rows,
    subjects_with,
    within,
)
from warehouse.readers.tasks.demographics import AGE, BucketDemographics, KnownFacts
from warehouse.readers.tasks.item_means import BucketItems
from warehouse.readers.tasks.labels import SHARES, Clock, Labels, check_clock, chosen_splits, read_labels, with_splits

ATTRIBUTES = ("DEMO/SEX", "DEMO/ETHNICITY")
# No event of a patient's care: demographics have columns of their own, and how far an export reaches is no fact.
NOT_COUNTED = (BIRTH, "DEMO", "IMAGING_FURTHER_IMAGE", "OBSERVATION_PERIOD_END", "OBSERVATION_PERIOD_START")


@dataclass(frozen=True)
class FeatureTable:
    """Features of n labels.

    Attributes:
        rows: subject_id, prediction_time, boolean_value, split, fold, few_shot, and of each modality `items_<name>`:
            how many items its vector is the mean of, 0 where none was available.
        columns: `column` (0, 1, …), `name`, `kind` (count, age or demographic) and `train_subjects`.
        sparse: (n, m) of the columns. What is not stored is 0; an age that nobody knows is stored as NaN.
        vectors: by modality (n, d), NaN where no item was available.
    """

    rows: pl.DataFrame
    columns: pl.DataFrame
    sparse: Sparse
    vectors: dict[str, F32]

    @property
    def csr(self) -> tuple[F32, I32, I64]:
        """Values, columns and edges of rows, as scipy takes them: `csr_array(table.csr, shape=table.shape)`."""
        return self.sparse.values, self.sparse.columns, self.sparse.edges

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return len(self.rows), len(self.columns)

    def dense(self) -> F32:
        """(n, m) float32: what scipy's matrix has, written out."""
        whole = np.zeros(self.shape, np.float32)
        whole[self.sparse.rows, self.sparse.columns] = self.sparse.values
        return whole


class Features:
    """A task's features, made bucket by bucket as they are asked for; by `Release.features`."""

    def __init__(
        self,
        release: PinnedRelease,
        labels: Labels,
        *,
        scheme: str | None = None,
        splits: Sequence[str] | str | None = None,
        least_share: float = 0.01,
        clock: Clock = "available_time",
        modalities: Sequence[str] | None = None,
        encoders: Mapping[str, str] | None = None,
        attributes: Sequence[str] = ATTRIBUTES,
        without: Sequence[str] = NOT_COUNTED,
        shares: Sequence[float] = SHARES,
        seed: int = 0,
    ) -> None:
        check_clock(clock)
        if not 0 <= least_share <= 1:
            raise TimeloomError("least_share is not between 0 and 1", remedy="give e.g. 0.01 for 1 %")
        wanted = sorted(release.manifest.encoders if modalities is None else modalities)
        self.encoders = {name: release.manifest.encoder(name, (encoders or {}).get(name)) for name in wanted}
        self.release, self.clock, self.least_share = release, clock, least_share
        self.scheme = scheme or release.manifest.split_scheme
        self.attributes, self.without, self.seed = tuple(attributes), tuple(without), seed
        self._splits = release.splits(self.scheme)
        rows = with_splits(read_labels(release, labels), self._splits, seed, shares)
        if splits is not None:
            rows = rows.filter(pl.col("split").is_in(chosen_splits(splits)))
        self.rows = rows

    @cached_property
    def units(self) -> Units:
        """The release's codes, and what each is counted as."""
        return Units.of(read_frame(self.release.checked(self.release.files.codes))["code"], self.without)

    @cached_property
    def columns(self) -> pl.DataFrame:
        """`column`, `name`, `kind` and `train_subjects`: codes of train alone, then the age and demographic facts.

        The first call reads every event once.
        """
        train = self._splits.filter(pl.col("split") == "train")["subject_id"].to_numpy()
        units = Units.of(self.units.codes, ())
        home = bucket_of(train, self.release.manifest.buckets)
        subjects = np.zeros(len(units.names), np.int64)
        for bucket in np.unique(home).tolist():
            path = self._events_of(bucket)
            if path is not None:
                members = np.sort(train[home == bucket])
                subjects += subjects_with(event_rows(path, units, self.clock, members), units)
        found = pl.DataFrame({"name": units.names, "train_subjects": subjects})
        fact = found["name"].is_in(self._fact_names.implode())
        counted = found["name"].is_in(self.units.names.implode())
        # In whole subjects, so that a share that is met exactly is met.
        least = max(1, int(np.ceil(self.least_share * len(train) - 1e-9)))
        often = counted & ~fact & (found["train_subjects"] >= least)
        counts = found.filter(often).with_columns(pl.lit("count").alias("kind"))
        age = pl.DataFrame({"name": [AGE], "train_subjects": [len(train)], "kind": ["age"]})
        facts = found.filter(fact & (pl.col("train_subjects") > 0)).with_columns(pl.lit("demographic").alias("kind"))
        together = pl.concat([part.select("name", "kind", "train_subjects") for part in (counts, age, facts)])
        return together.with_row_index("column").with_columns(pl.col("column").cast(pl.Int32))

    @cached_property
    def _fact_names(self) -> pl.Series:
        return self.units.codes.filter(within(self.units.codes, self.attributes))

    def _events_of(self, bucket: int) -> Path | None:
        path = self.release.files.events(bucket)
        return self.release.checked(path) if self.release.present([path]) else None

    def buckets(self) -> Iterator[FeatureTable]:
        """The features of each bucket that has labels, one after the other.

        Raises:
            TimeloomError: a file of the release is missing or damaged.
        """
        columns = self.columns
        home = bucket_of(self.rows["subject_id"].to_numpy(), self.release.manifest.buckets)
        for bucket in np.unique(home).tolist():
            yield self._of_bucket(bucket, self.rows.filter(pl.Series(home == bucket)), columns)

    def _of_bucket(self, bucket: int, rows: pl.DataFrame, columns: pl.DataFrame) -> FeatureTable:
        labels = LabelRows.of(rows["subject_id"].to_numpy(), rows["prediction_time"].to_physical().to_numpy())
        counts = BucketCounts(labels, self.units)
        demographics = BucketDemographics(labels, self.units, self.attributes)
        path = self._events_of(bucket)
        for events in event_rows(path, self.units, self.clock, labels.subjects) if path is not None else ():
            counts.add(events)
            demographics.add(events)
        means = {}
        if self.encoders:
            items = BucketItems(self.release, bucket, labels, self.clock)
            means = {name: items.means(name, encoder) for name, encoder in self.encoders.items()}
        return FeatureTable(
            rows=rows.with_columns(pl.Series(f"items_{name}", mean.items) for name, mean in means.items()),
            columns=columns,
            sparse=self._sparse(counts.counted(), demographics.known_facts(), columns, len(rows)),
            vectors={name: mean.vectors for name, mean in means.items()},
        )

    def _sparse(self, counted: Counted, facts: KnownFacts, columns: pl.DataFrame, rows: int) -> Sparse:
        """Counts, the age and demographic facts in their columns; what has no column is left out."""
        of_unit = _places(self.units.names, columns.filter(pl.col("kind") == "count"))
        of_code = _places(self.units.codes, columns.filter(pl.col("kind") == "demographic"))
        age = int(columns.filter(pl.col("kind") == "age")["column"].item())
        column = np.concatenate([of_unit[counted.unit], of_code[facts.code], np.full(rows, age)])
        row = np.concatenate([counted.row, facts.row, np.arange(rows)])
        values = np.concatenate([counted.count, np.ones(len(facts.row)), facts.age])
        kept = column >= 0
        return Sparse.of(row[kept], column[kept], values[kept], rows)

    def read(self) -> FeatureTable:
        """The features of all labels at once; `buckets` and `write` hold one bucket's."""
        parts = list(self.buckets())
        sparse = [part.sparse for part in parts]
        edges = np.zeros(len(self.rows) + 1, np.int64)
        sizes = [np.diff(part.edges) for part in sparse]
        np.cumsum(np.concatenate([np.empty(0, np.int64), *sizes]), out=edges[1:])
        return FeatureTable(
            rows=pl.concat([part.rows for part in parts]) if parts else self._no_rows(),
            columns=self.columns,
            sparse=Sparse(
                np.concatenate([np.empty(0, np.float32), *(part.values for part in sparse)]),
                np.concatenate([np.empty(0, np.int32), *(part.columns for part in sparse)]),
                edges,
            ),
            vectors={
                name: np.concatenate([np.empty((0, encoder.dim), np.float32), *(part.vectors[name] for part in parts)])
                for name, encoder in self.encoders.items()
            },
        )

    def _no_rows(self) -> pl.DataFrame:
        empty = [pl.Series(f"items_{name}", [], pl.Int64) for name in self.encoders]
        return self.rows.clear().with_columns(empty)

    def write(self, folder: Path | str) -> dict[str, int]:
        """Writes the features as Parquet, a bucket at a time, and gives the rows of each file.

        `matrix.parquet` has row, column and value, `rows.parquet` and `columns.parquet` say what they are;
        `<modality>.parquet` has a label's vector, null where no item was available; features.json says of what release.

        Raises:
            TimeloomError: the folder has files, or a file of the release is missing or damaged.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TimeloomError("the folder of the features is not empty", remedy="give a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        written = {"columns.parquet": len(self.columns), "rows.parquet": 0, "matrix.parquet": 0}
        written |= {f"{name}.parquet": 0 for name in self.encoders}
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(pq.ParquetWriter(stack.enter_context(atomic_write(folder / name)), schema))
                for name, schema in self._schemas().items()
            }
            writers["columns.parquet"].write_table(_arrow(self.columns))
            for part in self.buckets():
                for name, table in _tables(part, written["rows.parquet"]).items():
                    writers[name].write_table(table.cast(writers[name].schema))
                    written[name] += table.num_rows
        write_json(folder / "features.json", self._settings())
        return written

    def _settings(self) -> dict[str, Any]:
        return {
            "release": self.release.manifest.release_id,
            "scheme": self.scheme,
            "clock": self.clock,
            "least_share": self.least_share,
            "attributes": list(self.attributes),
            "not_counted": list(self.without),
            "seed": self.seed,
            "rows": len(self.rows),
            "columns": len(self.columns),
            "stores": {name: encoder.store for name, encoder in self.encoders.items()},
        }

    def _schemas(self) -> dict[str, pa.Schema]:
        """Of each file."""
        return {
            "columns.parquet": _arrow(self.columns).schema,
            "rows.parquet": _arrow(self._no_rows()).schema,
            "matrix.parquet": MATRIX,
            **{f"{name}.parquet": VECTORS for name in self.encoders},
        }


MATRIX = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("column", pa.int32(), nullable=False),
        pa.field("value", pa.float32(), nullable=False),
    ]
)
VECTORS = pa.schema([pa.field("vector", pa.list_(pa.float32()))])


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def _places(names: pl.Series, columns: pl.DataFrame) -> I64:
    """Of each name (u,) its column, -1 where it has none."""
    joined = names.rename("name").to_frame().join(columns, on="name", how="left", maintain_order="left")
    return joined["column"].cast(pl.Int64).fill_null(-1).to_numpy()


def _tables(part: FeatureTable, first: int) -> dict[str, pa.Table]:
    """A bucket's rows of each file; `first` is the number of its first row."""
    sparse = part.sparse
    matrix = {"row": sparse.rows + first, "column": sparse.columns, "value": sparse.values}
    tables = {
        "rows.parquet": _arrow(part.rows),
        "matrix.parquet": pa.table(matrix, schema=MATRIX),
    }
    for name, vectors in part.vectors.items():
        present = part.rows[f"items_{name}"].to_numpy() > 0
        edges = np.concatenate([[0], np.cumsum(present * vectors.shape[1])]).astype(np.int32)
        flat = pa.array(vectors[present].reshape(-1), pa.float32())
        # Not of a fixed size: Parquet files of such lists are not read back where one is null.
        column = pa.ListArray.from_arrays(pa.array(edges), flat, mask=pa.array(~present))
        tables[f"{name}.parquet"] = pa.table({"vector": column})
    return tables
