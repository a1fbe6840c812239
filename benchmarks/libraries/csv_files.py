"""CSV: our splitter against pyarrow, polars and DuckDB, on regular and on irregular files."""

import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from libraries.turns import Ratios, seconds, versions

NARROW = ["subject_id", "hadm_id", "itemid", "charttime", "storetime", "value", "valueuom"]
PLAIN = {"charttime", "storetime"}
NULLS = ["", "___"]
TASKS = ("all columns", "seven columns", "as converted")
CSV_READERS = ("timeloom", "timeloom without loops", "pyarrow.csv", "polars.read_csv", "polars.scan_csv", "duckdb")


def csv_file(target: Path, data: Path | None, least: int) -> Path:
    """Rows of MIMIC-IV's labevents, or such as have their shape, repeated until the text has `least` bytes."""
    if target.is_file():
        return target
    import gzip

    source = None if data is None else data / "mimic-iv-demo-2.2" / "hosp" / "labevents.csv.gz"
    if source is not None and source.is_file():
        header, body = gzip.decompress(source.read_bytes()).split(b"\n", 1)
    else:
        header, body = _lab_rows(100_000)
    with target.open("wb") as file:
        file.write(header + b"\n")
        while file.tell() < least:
            file.write(body)
    return target


def _lab_rows(count: int) -> tuple[bytes, bytes]:
    random = np.random.default_rng(0)
    subjects, items, values = (random.integers(0, high, count) for high in (1000, 400, 3000))
    minutes = random.integers(0, 60, count)
    rows = [
        f"{row},{10_000_000 + subject},{20_000_000 + subject},{row},{50_800 + item},,2150-03-02 04:{minute:02d}:00,"
        f"2150-03-02 06:{minute:02d}:00,{value / 10},{value / 10},mg/dL,10,200,,ROUTINE,"
        + ('"___, see ""note"""' if row % 9 == 0 else "")
        for row, (subject, item, value, minute) in enumerate(zip(subjects, items, values, minutes, strict=True))
    ]
    names = "labevent_id,subject_id,hadm_id,specimen_id,itemid,order_provider_id,charttime,storetime,value,valuenum"
    header = f"{names},valueuom,ref_range_lower,ref_range_upper,flag,priority,comments"
    return header.encode(), ("\n".join(rows) + "\n").encode()


def _timeloom(path: Path, task: str, compiled_from: int) -> int:
    from extractors.tables import csv_reader

    csv_reader.COMPILED_FROM = compiled_from
    reader = csv_reader.CsvReader(path, NULLS)
    rows = 0
    if task == "all columns":
        for block in reader.blocks(reader.columns, None, None):
            rows += len(block.frame)
    else:
        converted = task == "as converted"
        for block in reader.blocks(NARROW, 5 if converted else None, PLAIN):
            for name, column in block.columns.items():
                if converted and name in PLAIN:
                    assert column.texts is not None and column.texts.moments() is not None
                else:
                    assert len(column.values)
            rows += len(block)
    return rows


def _pyarrow(path: Path, task: str, threads: int) -> int:
    import polars as pl
    import pyarrow as pa
    import pyarrow.csv as pacsv

    with path.open("rb") as file:
        names = file.readline().decode().rstrip("\r\n").split(",")
    text, numbered = pa.string(), pa.dictionary(pa.int32(), pa.string())
    short = set() if task == "all columns" else set(NARROW) - PLAIN
    table = pacsv.read_csv(
        path,
        read_options=pacsv.ReadOptions(use_threads=threads > 1, block_size=16 << 20),
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            column_types={name: numbered if name in short else text for name in names}
            | (dict.fromkeys(PLAIN, pa.timestamp("us")) if task == "as converted" else {}),
            null_values=NULLS,
            strings_can_be_null=True,
            include_columns=NARROW if task == "seven columns" else [],
        ),
    )
    if task == "as converted":
        hashes = pl.DataFrame(pl.from_arrow(table)).hash_rows(seed=5)
        assert len(hashes) == len(table.select(NARROW))
    return len(table)


def _polars(path: Path, task: str, lazily: bool) -> int:
    import polars as pl

    columns = NARROW if task == "seven columns" else None
    converted = [
        pl.col(name).str.to_datetime("%Y-%m-%d %H:%M:%S") if name in PLAIN else pl.col(name) for name in NARROW
    ]
    if lazily:
        scanned = pl.scan_csv(path, infer_schema=False, null_values=NULLS)
        if task == "as converted":
            scanned = scanned.select(*converted, pl.struct(pl.all()).hash(seed=5).alias("row hash"))
        elif columns:
            scanned = scanned.select(columns)
        return scanned.collect(engine="streaming").height
    frame = pl.read_csv(path, infer_schema=False, null_values=NULLS, columns=columns)
    if task == "as converted":
        frame = frame.select(*converted, frame.hash_rows(seed=5).alias("row hash"))
    return frame.height


def _duckdb(path: Path, task: str, threads: int) -> int:
    import duckdb

    source = f"read_csv('{path}', header = true, all_varchar = true, nullstr = ['', '___'])"
    columns = "*" if task == "all columns" else ", ".join(NARROW)
    if task == "as converted":
        chosen = [f"{name}::TIMESTAMP AS {name}" if name in PLAIN else name for name in NARROW]
        columns = f"{', '.join(chosen)}, hash(t) AS row_hash"
    with duckdb.connect(config={"threads": threads}) as connection:
        return int(connection.sql(f"SELECT {columns} FROM {source} t").to_arrow_table().num_rows)


def read_csv(name: str, path: Path, threads: int, repeats: int) -> dict[str, tuple[int, float]]:
    """By task: rows, and the median of seconds."""
    found = {}
    for task in TASKS:
        work = _reader(name, path, task, threads)
        rows = work()
        found[task] = rows, statistics.median(seconds(work) for _ in range(repeats))
    return found


def _reader(name: str, path: Path, task: str, threads: int) -> Callable[[], int]:
    readers: dict[str, Callable[[], int]] = {
        "timeloom": lambda: _timeloom(path, task, 0),
        "timeloom without loops": lambda: _timeloom(path, task, 1 << 60),
        "pyarrow.csv": lambda: _pyarrow(path, task, threads),
        "polars.read_csv": lambda: _polars(path, task, False),
        "polars.scan_csv": lambda: _polars(path, task, True),
        "duckdb": lambda: _duckdb(path, task, threads),
    }
    return readers[name]


def measure_csv(quick: bool, work: Path, data: Path | None) -> Ratios:
    """Seconds by task, reader and threads; each reader in a process of its own."""
    least, repeats, peers = (36 << 20, 3, (1,)) if quick else (128 << 20, 5, (1, 2))
    path = csv_file(work / f"labevents-{least >> 20}.csv", data, least)
    size = path.stat().st_size / 1e6
    print(f"\nCSV of {size:,.0f} MB; versions {versions('pyarrow', 'polars', 'duckdb', 'numba')}")
    print("MB/s:")
    print(f"{'':<26}{'threads':>8}" + "".join(f"{task:>18}" for task in TASKS))
    medians: dict[tuple[str, str, int], float] = {}
    counts = set()
    context = multiprocessing.get_context("spawn")
    for name in CSV_READERS:
        for threads in (1,) if name.startswith("timeloom") else peers:
            os.environ["POLARS_MAX_THREADS"] = str(threads)
            with ProcessPoolExecutor(1, mp_context=context) as process:
                found = process.submit(read_csv, name, path, threads, repeats).result()
            line = f"{name:<26}{threads:>8}"
            for task, (rows, median) in found.items():
                counts.add(rows)
                medians[task, name, threads] = median
                line += f"{size / median:>18,.0f}"
            print(line)
    assert len(counts) == 1, "the readers differ in their rows"
    ratios: Ratios = {}
    for task in TASKS:
        for peer in CSV_READERS[1:]:
            key = f"csv {task} vs {peer.removeprefix('timeloom ')}".replace(" ", "_").replace(".", "_")
            ratios[key] = round(medians[task, peer, 1] / medians[task, "timeloom", 1], 2)
    return ratios | {"csv_irregular_right": irregular()}


# A file, its rows, and the numbers of its malformed records; None where the file must be refused.
_WHOLE = [row for row in range(1, 200_001) if row != 150_000]
_MANY = "".join(f"{row},x\n" if row != 150_000 else "150000\n" for row in range(1, 200_001)).encode()
IRREGULAR: Mapping[str, tuple[bytes, tuple[list[tuple[str | None, str | None]], list[int]] | None]] = {
    "a record with too few fields": (b"1,x\n2\n3,y\n", ([("1", "x"), ("3", "y")], [2])),
    "a record with too many fields": (b"1,x\n2,y,z\n3,w\n", ([("1", "x"), ("3", "w")], [2])),
    "both, behind a line end in quotes": (b'1,"x\ny"\n2\n3,z\n4,q,r\n', ([("1", "x\ny"), ("3", "z")], [2, 4])),
    "too few, behind an empty line": (b"1,x\n\n2\n3,y\n", ([("1", "x"), ("3", "y")], [2])),
    "too few, the 150,000th record": (_MANY, ([(str(row), "x") for row in _WHOLE], [150_000])),
    "doubled quotes": (b'1,"say ""no"""\n2,y\n', ([("1", 'say "no"'), ("2", "y")], [])),
    "a quote within a field": (b'1,5" tall\n2,y\n', ([("1", '5" tall'), ("2", "y")], [])),
    "CRLF, and no last line end": (b"1,x\r\n2,y", ([("1", "x"), ("2", "y")], [])),
    "a quote that is never closed": (b'1,x\n2,"y\n3,z\n', None),
    "bytes that are not UTF-8": (b"1,x\n2,\xff\n", None),
}  # fmt: skip

Read = tuple[list[tuple[str | None, str | None]], list[int] | None]


def _ours_irregular(path: Path) -> Read:
    from extractors.tables.csv_reader import CsvReader

    reader = CsvReader(path, [""])
    rows = [row for block in reader.blocks(["a", "b"], None, None) for row in block.frame.rows()]
    return rows, reader.malformed


def _pyarrow_irregular(path: Path, threads: bool) -> Read:
    import pyarrow as pa
    import pyarrow.csv as pacsv

    numbers: list[int | None] = []

    def malformed(row: Any) -> str:
        numbers.append(row.number)
        return "skip"

    table = pacsv.read_csv(
        path,
        read_options=pacsv.ReadOptions(use_threads=threads),
        parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=malformed),
        convert_options=pacsv.ConvertOptions(
            column_types={"a": pa.string(), "b": pa.string()}, strings_can_be_null=True
        ),
    )
    known = [number - 1 for number in numbers if number is not None]  # the header is its first row
    return list(zip(*table.to_pydict().values(), strict=True)), known if len(known) == len(numbers) else None


def _polars_irregular(path: Path, lazily: bool) -> Read:
    import polars as pl

    options: dict[str, Any] = {"infer_schema": False, "truncate_ragged_lines": True}
    frame = pl.scan_csv(path, **options).collect() if lazily else pl.read_csv(path, **options)
    return frame.rows(), []


def _duckdb_irregular(path: Path) -> Read:
    import duckdb

    options = """header = true, delim = ',', quote = '"', escape = '"', auto_detect = false, store_rejects = true"""
    with duckdb.connect() as connection:
        types = "columns = {'a': 'VARCHAR', 'b': 'VARCHAR'}"
        rows = connection.sql(f"SELECT a, b FROM read_csv('{path}', {options}, {types})").fetchall()
        rejects = connection.sql("SELECT DISTINCT line - 1 FROM reject_errors ORDER BY 1").fetchall()
    return rows, [int(line) for (line,) in rejects]


def irregular() -> dict[str, int]:
    """What each reader makes of irregular files: how many it reads right, malformed records numbered."""
    readers: dict[str, Callable[[Path], Read]] = {
        "timeloom": _ours_irregular,
        "pyarrow, 1 thread": lambda path: _pyarrow_irregular(path, False),
        "pyarrow, threads": lambda path: _pyarrow_irregular(path, True),
        "polars.read_csv": lambda path: _polars_irregular(path, False),
        "polars.scan_csv": lambda path: _polars_irregular(path, True),
        "duckdb": _duckdb_irregular,
    }
    print("\n" + " " * 36 + "".join(f"{name:>19}" for name in readers))
    right = dict.fromkeys(readers, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        for case, (body, wanted) in IRREGULAR.items():
            path.write_bytes(b"a,b\n" + body)
            cells = []
            for name, read in readers.items():
                cells.append(_outcome(read, path, wanted))
                right[name] += cells[-1] == "right"
            print(f"{case:<36}" + "".join(f"{cell:>19}" for cell in cells))
    return right


def _outcome(read: Callable[[Path], Read], path: Path, wanted: Read | None) -> str:
    try:
        rows, numbers = read(path)
    except Exception:  # each reader has errors of its own
        return "right" if wanted is None else "file refused"
    if wanted is None:
        return "read as if good"
    if sorted(map(str, rows)) != sorted(map(str, wanted[0])):
        return "other rows"
    return "right" if numbers == wanted[1] else "no record numbers" if numbers is None else "other numbers"
