"""docs/profiles.md shows one timeline in each profile: made by the profiles, written by running this file."""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.profiles import built_in
from pipelines.profiles.counting import count_part
from pipelines.profiles.fitting import extend, fixed_tokens
from pipelines.profiles.lexicon import make_lexicon
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.timeline import choose
from tests.support.tokens.timelines import events, named_tokens, part_of, usable

PAGE = Path(__file__).parents[3] / "docs" / "profiles.md"
ADMITTED = datetime(2024, 3, 1, 9, 30)
LABS = [
    {"code": "LOINC/718-7", "time": ADMITTED + timedelta(hours=hours), "numeric_value": value, "unit": "g/dL"}
    for hours, value in ((2, 10.4), (26, 8.1))
]
EXAMPLE: list[dict[str, Any]] = [
    {"code": "DEMO/SEX/F", "time": None},
    {"code": "MEDS_BIRTH", "time": datetime(1957, 1, 1), "time_precision": "year"},
    {"code": "HOSPITAL_ADMISSION/URGENT/CLINIC", "time": ADMITTED, "kind": "visit_start"},
    {"code": "DEMO/ETHNICITY/WHITE", "time": ADMITTED},
    *LABS,
    {"code": "IMAGE/CT", "kind": "image", "item_key": "9f2c", "time": ADMITTED + timedelta(hours=26), "source": "ct"},
    {"code": "RXNORM/2555", "time": ADMITTED + timedelta(days=2)},
    {
        "code": "ICD10PCS/30233N1", "time": datetime(2024, 3, 2, 23, 59, 59, 999_999), "time_precision": "day",
        "available_time": ADMITTED + timedelta(days=3),
    },
    {"code": "ICD10CM/C50911", "time": ADMITTED + timedelta(days=3)},
    {"code": "HOSPITAL_DISCHARGE/HOME", "time": ADMITTED + timedelta(days=3), "kind": "visit_end"},
    {"code": "MEDS_DEATH", "time": ADMITTED + timedelta(days=400), "kind": "death"},
]  # fmt: skip
PARENTS = pl.DataFrame({"code": ["RXNORM/2555"], "parent_codes": [["ATC/L01XA01"]]})
BREAKS = pl.DataFrame(
    {"code": ["LOINC/718-7"], "unit": ["g/dL"], "breaks": [[7.6, 8.4, 9.1, 9.8, 10.5, 11.2, 12.0, 12.9, 13.8]]}
).with_columns(pl.lit(1000, pl.Int64).alias("train_values"))
SHOWN = {
    "mehrt": built_in("mehrt"),
    "ethos": built_in("ethos"),
    "mehrt-paper": built_in("mehrt-paper"),
    "ethos-paper": built_in("ethos-paper"),
    "mehrt, `values: fused`, `intervals: ethos13`": built_in(
        "mehrt", values="fused", intervals="ethos13", codes={"LOINC": {"values": True}}
    ),
}


def line(profile: ProfileConfig) -> str:
    """A timeline as text, a moment a line."""
    frame, items = events(*EXAMPLE), usable("9f2c")
    # As if train had these breaks and every token of the example.
    part = part_of(frame)
    chosen = choose(part, make_lexicon(part.code.distinct, profile, PARENTS), items, profile)
    counts = count_part(chosen, pl.DataFrame({"subject_id": [1], "split": ["train"]}), profile)
    words = extend(counts.tokens, None, fixed_tokens(profile, BREAKS))
    made = named_tokens(frame, profile, items, PARENTS, words, BREAKS)
    rows = []
    for (time,), tokens in made.group_by("time", maintain_order=True):
        assert time is None or isinstance(time, datetime)
        at = "—" if time is None else f"{time:%Y-%m-%d %H:%M}"
        names = [f"{token}={key}" if key else token for token, key in tokens.select("token", "item_key").iter_rows()]
        rows.append(f"{at:16}  {'  '.join(names)}")
    return "\n".join(rows)


def given() -> str:
    rows = []
    for row in events(*EXAMPLE).iter_rows(named=True):
        at = "—" if row["time"] is None else f"{row['time']:%Y-%m-%d %H:%M}"
        value = f"  {row['numeric_value']:.1f} {row['unit']}" if row["unit"] else ""
        later = f"  (available {row['available_time']:%m-%d %H:%M})" if row["available_time"] != row["time"] else ""
        rows.append(f"{at:16}  {row['code']}{value}{later}")
    return "\n".join(rows)


def section() -> str:
    parts = ["The events:\n", f"```text\n{given()}\n```\n"]
    for name, profile in SHOWN.items():
        parts += [f"{name}:\n", f"```text\n{line(profile)}\n```\n"]
    return "\n".join(parts)


MARKED = re.compile(r"(?<=<!-- one timeline -->\n).*?(?=<!-- end -->)", re.S)


def test_the_page_shows_what_the_profiles_make() -> None:
    found = MARKED.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == section()


def test_the_page_names_every_rule() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in (*ProfileConfig.model_fields, "pieces", "parents", "several", "only_numeric", "top"):
        assert f"`{name}`" in text, name


if __name__ == "__main__":
    PAGE.write_text(MARKED.sub(lambda _: section(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
