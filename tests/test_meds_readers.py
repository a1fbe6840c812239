"""Other people's MEDS tools read a release as it is."""

import json
import subprocess
import sys
from pathlib import Path

import meds
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from warehouse import Release


@pytest.fixture(scope="module")
def release(demo_release: Path) -> Release:
    return Release.open(demo_release)


def test_meds_schemas_validate_every_file(release: Release) -> None:
    events = sorted((release.path / "data").glob("*.parquet"))
    assert len(events) == release.manifest.buckets
    for path in events:
        meds.DataSchema.validate(pq.read_table(path))
    meds.CodeMetadataSchema.validate(pq.read_table(release.files.codes))
    meds.SubjectSplitSchema.validate(pq.read_table(release.files.subject_splits))
    metadata = json.loads(release.files.dataset_metadata.read_text(encoding="utf-8"))
    meds.DatasetMetadataSchema.validate(metadata)
    extra = set(pq.read_schema(events[0]).names) - set(meds.DataSchema.schema().names)
    classified = [name for key, names in metadata.items() if key.endswith("_columns") for name in names]
    assert sorted(classified) == sorted(extra)


def test_meds_schema_would_notice_a_wrong_type(release: Release) -> None:
    table = pq.read_table(next((release.path / "data").glob("*.parquet")))
    index = table.schema.get_field_index("code")
    wrong = table.set_column(index, "code", table.column("code").cast(pa.large_string()))
    with pytest.raises(Exception, match="code"):
        meds.DataSchema.validate(wrong)


def test_meds_reader_opens_the_release(release: Release, tmp_path: Path) -> None:
    converter = Path(sys.executable).with_name("meds_reader_convert")
    done = subprocess.run([converter, release.path, tmp_path / "database"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # meds_reader keeps its own mappings open, so it gets a process of its own.
    code = (
        "import meds_reader, sys; database = meds_reader.SubjectDatabase(sys.argv[1]);"
        "print(len(list(database)), sum(len(database[subject].events) for subject in database))"
    )
    counted = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "database"], capture_output=True, text=True, check=True
    )
    events = release.events().select(pl.len(), pl.col("subject_id").n_unique().alias("subjects")).collect()
    assert counted.stdout.split() == [str(events["subjects"][0]), str(events["len"][0])]
