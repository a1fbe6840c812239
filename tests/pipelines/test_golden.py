"""One tiny example for each stage, checked by hand and shown in docs/stages.md.

`python -m tests.pipelines.test_golden` writes that page.
"""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import yaml

from extractors.source import load_source
from pipelines import pack, split, vocabulary
from pipelines.papers import graphs
from pipelines.profiles import built_in
from pipelines.splitting.ledger import Freeze
from tests.support.images.indexing import index_images
from tests.support.images.phantoms import write_series
from tests.support.raw.raw_tables import align_one, aligned_events, convert
from tests.support.tokens.timelines import left_out, named_tokens
from tests.support.visits import write_events
from validation.stages import NIGHT
from warehouse.arrays import NO_TIME
from warehouse.files import sha256_file
from warehouse.layout import ReleaseLayout
from warehouse.modalities import INDEXED
from warehouse.order import sort_events
from warehouse.parquet import empty_frame, read_frame, write_table
from warehouse.schemas import EVENTS, ITEMS, SCHEME_SUBJECTS, SPLIT_LEDGER, SUBJECTS, TIMELINES, TOKEN_COUNTS
from warehouse.shards.file import Packs, ShardHeader, read_shard
from warehouse.tokens import TYPE_NAMES

GOLDEN = Path(__file__).parents[1] / "golden"
PAGE = Path(__file__).parents[2] / "docs" / "stages.md"
TYPES = {name: int(kind) for kind, name in TYPE_NAMES.items()}
LAG_US = 90 * 60_000_000  # the usual lag of the example's results


def read(path: Path, schema: pa.Schema | None = None, **missing: Any) -> pl.DataFrame:
    """A CSV as a frame of `schema`; a column that it lacks gets its value from `missing`, else null."""
    text = pl.read_csv(path, infer_schema=False, missing_utf8_is_empty_string=False)
    if schema is None:
        return text
    wanted = empty_frame(schema).schema
    columns = []
    for name, dtype in wanted.items():
        column = pl.col(name) if name in text.columns else pl.lit(missing.get(name), pl.String)
        if isinstance(dtype, pl.Datetime):
            column = column.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us")
        columns.append((column == "true" if dtype == pl.Boolean else column.cast(dtype)).alias(name))
    return text.select(columns)


def written(frame: pl.DataFrame) -> str:
    return frame.write_csv(datetime_format="%Y-%m-%d %H:%M:%S%.f")


def meds(given: Path, work: Path) -> dict[str, str]:
    source = load_source("source.yaml", given)
    frames, account = [], []
    for table in source.tables:
        rows, counts = convert(work, source, table, given / f"{table}.csv")
        frames.append(rows)
        account += [(table, outcome, None, counts[outcome]) for outcome in ("raw", "events", "static")]
        for outcome in ("quarantined", "partial"):
            account += [(table, outcome, reason, number) for reason, number in counts[outcome].items()]
    shown = ["source", "row", "subject_id", "time", "code", "numeric_value", "text_value", "unit", "available_time"]
    events = pl.concat(frames).select(*shown, "availability", "value_flag", "time_precision", "kind", "visit_id")
    ledger = pl.DataFrame(account, schema=["table", "outcome", "reason", "rows"], orient="row")
    return {"events.csv": written(events), "account.csv": written(ledger)}


def index_ct(given: Path, work: Path) -> dict[str, str]:
    for name, header in yaml.safe_load((given / "series.yaml").read_text()).items():
        write_series(work / "ct" / name, **header)
    crosswalk = {"file": str(given / "crosswalk.csv"), "match": "patient_id", "artificial": True}
    settings = {"path": str(work / "ct"), "crosswalk": crosswalk}
    items, _ = index_images(work, "ct", settings, buckets=1)
    assert items["item_key"].str.contains("^[0-9a-f]{32}$").all()
    shown = ["subject_id", "modality", "time", "available_time", "time_source", "time_precision", "verdict"]
    return {"items.csv": written(items.select(*shown, "units_expected", "artificial_link").sort("verdict"))}


def align(given: Path, work: Path) -> dict[str, str]:
    source = load_source("source.yaml", given)
    accounts = [convert(work, source, table, given / f"{table}.csv")[1] for table in source.tables]
    segments = {counts["segment"]: counts for counts in accounts}
    (bucket,) = {bucket for counts in accounts for bucket in counts["buckets"]}
    items = read(given / "items.csv", ITEMS, units_encoded="0", units_failed="0", artificial_link="false")
    result = align_one(work, segments, int(bucket), items, {"labs": {"LOINC/2160-0": LAG_US}})
    shown = ["subject_id", "time", "code", "numeric_value", "available_time", "time_precision", "kind", "source"]
    marks = ["availability", "value_flag", "conflict"]
    account = {"set_aside": result.counts["set_aside"], "conflicts": result.counts["conflicts"]}
    return {
        "events.csv": written(aligned_events(work, int(bucket)).select(*shown, "item_key", *marks)),
        "subjects.csv": written(read_frame(ReleaseLayout(work / "release").subjects(int(bucket)))),
        "account.json": json.dumps(account, indent=1, sort_keys=True) + "\n",
    }


def split_subjects(given: Path, work: Path) -> dict[str, str]:
    scheme = yaml.safe_load((given / "scheme.yaml").read_text())
    tree, before = ReleaseLayout(work), ReleaseLayout(work / "before")
    subjects = read(given / "subjects.csv", SUBJECTS, **dict.fromkeys(INDEXED, "0"))
    write_table(work / "subjects.parquet", subjects, SUBJECTS, "subjects")
    known = read(given / "ledger.csv", SPLIT_LEDGER)
    write_table(before.split_ledger("golden"), known, SPLIT_LEDGER, "ledger")
    freeze = Freeze("golden", scheme, json.loads((given / "edges.json").read_text()))
    freeze.append(known)
    freeze.write(before.split_freeze("golden"))
    merges = read(given / "merges.csv").cast(pl.Int64)
    merges.write_parquet(work / "merges.parquet")
    params: dict[str, Any] = {"scheme": "golden", "fractions": scheme, "primary": True}
    params |= {"subjects": ["subjects.parquet"], "merges": str(work / "merges.parquet")}
    for name, path in (("ledger", before.split_ledger("golden")), ("freeze", before.split_freeze("golden"))):
        params[name] = [str(path), sha256_file(path)]
    split.run(params, work)
    files = (tree.split_ledger("golden"), tree.subject_splits, tree.split_quarantine("golden"))
    return {f"{path.stem}.csv": written(read_frame(path)) for path in files}


def fit_vocabulary(given: Path, work: Path) -> dict[str, str]:
    write_table(work / "counts.parquet", read(given / "counts.csv", TOKEN_COUNTS), TOKEN_COUNTS, "counts")
    previous = read(given / "previous.csv").with_columns(pl.col("token_id").cast(pl.UInt32))
    previous.write_parquet(work / "previous.parquet")
    params = {
        "profile": "mehrt",
        "settings": built_in("mehrt-paper").model_dump(mode="json"),
        "counts": ["counts.parquet"],
    }
    params |= {"previous": str(work / "previous.parquet"), "values": [], "left_out": [], "quantiles": None}
    vocabulary.run(params, work)
    return {"vocabulary.csv": written(read_frame(ReleaseLayout(work).vocabulary("mehrt")))}


def encode(given: Path, work: Path) -> dict[str, str]:
    events = read(given / "events.csv", EVENTS, source="t")
    items = read(given / "usable_items.csv")["item_key"]
    known = read(given / "vocabulary.csv").with_columns(pl.col("token_id").cast(pl.UInt32))
    line = named_tokens(sort_events(events), built_in("mehrt-paper"), items, vocabulary=known)
    shown = line.select("subject_id", "token", "token_id", named_type(), "time", "item_key")
    dropped = pl.DataFrame(
        left_out(sort_events(events), built_in("mehrt-paper"), items),
        schema=["namespace", "reason", "events"],
        orient="row",
    )
    return {"timeline.csv": written(shown), "dropped.csv": written(dropped)}


def named_type() -> pl.Expr:
    return pl.col("type").replace_strict({int(kind): name for kind, name in TYPE_NAMES.items()})


def pack_train(given: Path, work: Path) -> dict[str, str]:
    tree = ReleaseLayout(work)
    assigned = read(given / "subjects.csv", SCHEME_SUBJECTS)
    write_table(tree.scheme_subjects("mehrt"), assigned, SCHEME_SUBJECTS, "subjects")
    raw = read(given / "timelines.csv").with_columns(pl.col("type").replace_strict(TYPES).cast(pl.String))
    raw.write_csv(work / "numbered.csv")
    write_table(work / "timelines.parquet", read(work / "numbered.csv", TIMELINES), TIMELINES, "timelines")
    header = yaml.safe_load((given / "header.yaml").read_text())
    shards = {}
    for name, plan in yaml.safe_load((given / "plans.yaml").read_text()).items():
        params = {"header": header, "plan": name, "settings": plan, "scheme": "mehrt", "group": 0, "groups": 1}
        pack.run({**params, "timelines": ["timelines.parquet"]}, work)
        found, packs = read_shard(tree.shard("mehrt", "train", 0, name))
        shards[f"{name}.json"] = json.dumps(list(plain(packs, found)), indent=1) + "\n"
    return shards


def plain(packs: Packs, header: ShardHeader) -> Iterator[dict[str, str]]:
    """The fields of the header that follow from the timelines, then each pack as text, one line for each column."""
    segment = image = 0
    yield {name: str(getattr(header, name)) for name in ("mode", "time_dtype", "time_unit_us", "dropped")}
    micros = packs.times_us(header)
    for row in range(len(packs)):
        segments = range(segment, segment := segment + int(packs.segments_per_pack[row]))
        images = range(image, image := image + int(packs.images_per_pack[row]))
        names = [TYPE_NAMES[kind][:2] for kind in packs.token_type[row].tolist()]
        known = pl.Series([None if us == NO_TIME else us for us in micros[row].tolist()], dtype=pl.Int64)
        times = known.cast(pl.Datetime("us")).dt.to_string("%m-%d %H:%M").fill_null("")
        yield {
            "input_ids": " ".join(map(str, packs.input_ids[row])),
            "token_type": " ".join(names),
            "time": " | ".join(times),
            "segments": "; ".join(
                f"subject {packs.segment_subject[number]} from its token {packs.segment_offset[number]}, "
                f"{packs.segment_length[number]} tokens"
                for number in segments
            ),
            "images": "; ".join(f"{packs.image_key[number]} at {packs.image_position[number]}" for number in images),
        }


def graph(given: Path, work: Path) -> dict[str, str]:
    tree = ReleaseLayout(work)
    settings = {**yaml.safe_load((given / "settings.yaml").read_text()), "crosswalks": [str(given / "crosswalk.csv")]}
    write_events(tree, read(given / "events.csv", EVENTS), {})
    for bucket in (None, 0):
        graphs.run({"bucket": bucket, "settings": settings}, work)
    visits, nodes, edges = (
        read_frame(path) for path in (tree.graph_visits(0), tree.graph_nodes(0), tree.graph_edges(0))
    )
    lists = [
        pl.col(name).list.eval(pl.element().cast(pl.String)).list.join("; ").replace("", None)
        for name in ("times", "values")
    ]
    return {
        "visits.csv": written(visits.drop("last_time")),
        "nodes.csv": written(nodes.with_columns(lists).drop("times")),
        "edges.csv": written(edges),
    }


EXAMPLES: dict[str, Callable[[Path, Path], dict[str, str]]] = {
    "meds": meds,
    "index": index_ct,
    "align": align,
    "split": split_subjects,
    "vocabulary": fit_vocabulary,
    "tokenize": encode,
    "pack": pack_train,
    "graphs": graph,
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_stage_makes_its_golden_example(example: str, tmp_path: Path) -> None:
    made = EXAMPLES[example](GOLDEN / example / "in", tmp_path)
    kept = {path.name: path.read_text(encoding="utf-8") for path in sorted((GOLDEN / example / "out").iterdir())}
    assert made == kept


def examples() -> list[str]:
    """The stages that have an example, in the order of the list."""
    return [stage.name for stage in NIGHT if stage.name in EXAMPLES]


def listed() -> list[str]:
    """The list of stages as a table, and a diagram of what each stage reads."""
    rows = ["| stage | version | reads what these did | what it does |", "|---|---|---|---|"]
    for stage in NIGHT:
        module = importlib.import_module(stage.run.partition(":")[0])
        assert module.__doc__ is not None
        first = " ".join(module.__doc__.partition("\n\n")[0].split()).partition(": ")[2]
        after = ", ".join(stage.after) or "raw files"
        rows.append(f"| `{stage.name}` | {stage.version} | {after} | {first} |")
    arrows = [f"  {name} --> {stage.name}" for stage in NIGHT for name in stage.after]
    helpers = [f"  {stage.name} -. before .-> {stage.prepares}" for stage in NIGHT if stage.prepares]
    return ["\n".join(rows) + "\n", "\n".join(["```mermaid", "flowchart LR", *arrows, *helpers, "```"]) + "\n"]


def page() -> str:
    """docs/stages.md: each stage's notes and its files."""
    parts = [
        "# Stages\n",
        "A night runs these stages in this order; the list is `pipelines/stages.py`, and `measure` behind it",
        "(`validation/stages.py`). A stage runs where its version, its settings or its inputs are other than they were",
        "in the release before.\n",
        *listed(),
        "## One small example each\n",
        "Each example stands under `tests/golden`, where a test runs the stage on it; this page is made of the same",
        "files by `python -m tests.pipelines.test_golden`, and a test holds it to them. Ids and dates are kept as they",
        "are, so that they can be followed; a real run hashes and shifts them.\n",
    ]
    for stage in examples():
        what, _, why = (GOLDEN / stage / "notes.md").read_text(encoding="utf-8").partition("\n\n")
        parts += [f"### {stage}\n", what.strip() + "\n"]
        for side in ("in", "out"):
            for path in sorted((GOLDEN / stage / side).iterdir()):
                kind = path.suffix.removeprefix(".")
                parts += [f"`{side}/{path.name}`\n", f"```{kind}", path.read_text(encoding="utf-8") + "```\n"]
        parts.append(why.strip() + "\n")
    return "\n".join(parts)


def test_every_example_is_of_a_stage_of_the_list() -> None:
    assert set(examples()) == set(EXAMPLES) == {path.name for path in GOLDEN.iterdir()}


def test_the_page_shows_the_same_files() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
