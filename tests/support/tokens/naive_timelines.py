"""The rules of docs/profiles.md a second time, event by event in plain Python, to compare the arrays with."""

import math
import re
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

import numpy as np
import polars as pl

from pipelines.profiles.intervals import SPECIFICATIONS
from pipelines.profiles.rules import NamespaceRule, ProfileConfig
from warehouse.order import KIND_RANK, PRECISION_RANK

Token = tuple[int, str, str, datetime | None, str | None]


def begins(code: str, beginnings: Any) -> bool:
    return any(code == beginning or code.startswith(f"{beginning}/") for beginning in beginnings)


def rule_of(code: str, profile: ProfileConfig) -> tuple[str, NamespaceRule]:
    fitting = [key for key in profile.codes if begins(code, [key])]
    key = max(fitting, key=len, default="")
    return key, profile.codes.get(key, NamespaceRule())


def targets_of(code: str, profile: ProfileConfig, parents: dict[str, list[str]]) -> tuple[list[str], str | None]:
    """The codes that replace a code by its parents, or the reason why there is none."""
    rule = rule_of(code, profile)[1]
    chosen: list[str] = []
    for kind in rule.parents:
        chosen = chosen or sorted({parent for parent in parents.get(code, []) if begins(parent, [kind])})
        if len(chosen) > 1 and rule.several != "each":
            pairs = zip(chosen[0], chosen[-1], strict=False)
            common = "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            chosen = [common] if rule.several == "common" and len(common) >= len(kind) + 4 else [code]
    fell_back = bool(rule.parents) and chosen in ([], [code])
    named = [target for target in chosen or [code] if profile.namespaces is None or begins(target, profile.namespaces)]
    return named, None if named else ("no_parent" if fell_back else "namespace_not_in_profile")


def tokens_of_code(code: str, profile: ProfileConfig) -> list[str]:
    key, rule = rule_of(code, profile)
    body = code[len(key) + 1 :]
    if not rule.pieces or not code.startswith(f"{key}/") or "/" in body:
        return [code]
    spans = {"3+3+*": [(0, 3, ""), (3, 6, "/4-6"), (6, None, "/7")]}
    spans["1+1+1+1+1+1+1"] = [(place, place + 1 if place < 6 else None, f"/{place + 1}") for place in range(7)]
    spans["3+1+*"] = [(0, 3, ""), (3, 4, "/4"), (4, None, "/5")]
    cut = [(f"{key}{name}/", body[low:high]) for low, high, name in spans[str(rule.pieces)]]
    return [name + part for number, (name, part) in enumerate(cut) if part or not number]


def number_of(row: dict[str, Any]) -> np.float32 | None:
    value = row["numeric_value"]
    if value is None or not math.isfinite(value):
        return None
    exact = np.float32(value)
    return np.nextafter(exact, np.float32(np.inf)) if row["value_flag"] == ">" else exact


def gap_tokens(gap: timedelta, profile: ProfileConfig) -> list[str]:
    micros = gap // timedelta(microseconds=1)
    reached = [name for name, start in SPECIFICATIONS[profile.intervals] if micros >= start]
    if reached and reached[-1] == "=6mt":
        return ["INTERVAL/=6mt"] * math.floor(gap / timedelta(days=180) + 0.5)
    return [f"INTERVAL/{reached[-1]}"] if reached else []


def age_tokens(rows: list[dict[str, Any]], profile: ProfileConfig) -> list[str]:
    born = [row["time"] for row in rows if row["code"] == "MEDS_BIRTH" and row["time"]]
    first = min((row["time"] for row in rows if row["code"] != "MEDS_BIRTH" and row["time"]), default=None)
    if not born or first is None or profile.age == "none":
        return []
    days = (first - min(born)) // timedelta(days=1)
    if profile.age == "digits":
        years = min(round(max(days / 365.25, 0)), 90)
        return [f"DEMO/AGE/TENS/{years // 10}", f"DEMO/AGE/ONES/{years % 10}"]
    decade = int(max(days / 365.2425, 0)) // 10 * 10
    return ["DEMO/AGE/90+" if decade >= 90 else f"DEMO/AGE/{decade}-{decade + 9}"]


def attribute(code: str) -> str:
    return "/".join(code.split("/")[:2]) if code.startswith("DEMO/") else code.split("/")[0]


class Naive:
    """Timelines of a frame in the order of data/, and how many events each reason left out."""

    def __init__(
        self,
        frame: pl.DataFrame,
        profile: ProfileConfig,
        items: set[str],
        parents: dict[str, list[str]],
        vocabulary: set[str],
        breaks: dict[tuple[str, str | None], list[float]],
    ) -> None:
        self.profile, self.items, self.parents = profile, items, parents
        self.vocabulary, self.breaks = vocabulary, breaks
        self.left_out: dict[tuple[str, str], int] = {}
        self.tokens: list[Token] = []
        for rows in frame.with_row_index("place").partition_by("subject_id", maintain_order=True):
            self._subject(rows.to_dicts())

    def _drop(self, row: dict[str, Any], reason: str) -> None:
        key = (row["code"].split("/")[0], reason)
        self.left_out[key] = self.left_out.get(key, 0) + 1

    def _precision(self, row: dict[str, Any]) -> int:
        at_its_time = self.profile.order == "time" or row["available_time"] == row["time"]
        return PRECISION_RANK[row["time_precision"]] if at_its_time else 0

    def _sorted(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(rows, key=self._key)

    def _key(self, row: dict[str, Any]) -> Any:
        at = row[self.profile.order]
        aside = {"after": 1, "first": -1}[self.profile.image_position] if row["kind"] == "image" else 0
        usual = (aside, self._precision(row), KIND_RANK[row["kind"]], row["code"], row["source"])
        return (at is not None, at or datetime.min, usual, row["place"])

    def _subject(self, rows: list[dict[str, Any]]) -> None:
        profile = self.profile
        subject = rows[0]["subject_id"]
        facts: list[dict[str, Any]] = []
        kept: list[dict[str, Any]] = []
        for row in sorted(rows, key=self._key):
            named, reason = targets_of(row["code"], profile, self.parents)
            rules = [rule_of(target, profile)[1] for target in named]
            if row["code"] == "MEDS_BIRTH":
                self._drop(row, "becomes_age")
            elif row["kind"] == "image":
                if row["item_key"] in self.items:
                    kept.append(row)
                else:
                    self._drop(row, "image_without_vector")
            elif row["code"].upper() == "IMAGE/CT":
                self._drop(row, "image_code_without_image")
            elif reason:
                self._drop(row, reason)
            elif begins(row["code"], profile.demographics):
                facts.append(row)
            elif number_of(row) is None and all(rule.only_numeric for rule in rules):
                self._drop(row, "no_number")
            else:
                kept.append(row)
        front, timed = self._facts(rows, facts)
        age = age_tokens(rows, profile) if profile.static != "none" else []
        start = [(token, "demographic") for token in [*sorted(front), *age]]
        self._add(subject, [("[BOS]", "special"), *start], None, None)
        before: datetime | None = None
        last: datetime | None = None
        for row in self._sorted([*kept, *timed]):
            at = row[profile.order]
            if before is not None and at is not None and row["kind"] != "image":
                self._add(
                    subject, [(gap_token, "interval") for gap_token in gap_tokens(at - before, profile)], at, None
                )
            if row["kind"] == "image":
                self._add(subject, [(f"[{row['code'].split('/')[1]}]", "image")], at, row["item_key"])
            else:
                kind = "demographic" if row in timed else "structured"
                self._add(subject, [(token, kind) for token in self._event(row)], at, None)
            last = at
            before = before if row["kind"] == "image" else at
        if profile.timeline_end:
            self._add(subject, [("TIMELINE_END", "structured")], last, None)

    def _facts(self, rows: list[dict[str, Any]], facts: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
        profile = self.profile
        if profile.static == "none":
            for row in facts:
                self._drop(row, "demographic_not_in_profile")
            return [], []
        front: dict[str, str] = {}
        in_front: list[str] = []
        timed: list[dict[str, Any]] = []
        starts = [row[profile.order] for row in rows if row["code"] != "MEDS_BIRTH" and row[profile.order]]
        used: dict[str, dict[str, Any]] = {}
        for row in facts:
            named = attribute(row["code"])
            if profile.static == "timed":
                if front.get(named) == row["code"]:
                    self._drop(row, "repeated_demographic")
                elif row[profile.order] is None:
                    in_front.append(row["code"])
                else:
                    timed.append(row)
                front[named] = row["code"]
            elif profile.demographic_value == "first":
                before = used.get(named)
                better = before is None or (
                    before["code"].endswith("/UNKNOWN") and not row["code"].endswith("/UNKNOWN")
                )
                if before is not None:
                    self._drop(before if better else row, "repeated_demographic")
                if better:
                    used[named] = row
            else:
                known = row[profile.order] is None or row[profile.order] <= min(starts)
                for lost in [used.get(named)] if known else [row]:
                    if lost is not None:
                        self._drop(lost, "repeated_demographic")
                if known:
                    used[named] = row
        in_front += [row["code"] for row in used.values()]
        having = {attribute(code) for code in in_front}
        lacking = [
            f"{unknown_demographic}/UNKNOWN"
            for unknown_demographic in profile.unknown_demographics
            if unknown_demographic not in having
        ]
        return in_front + lacking, timed

    def _event(self, row: dict[str, Any]) -> list[str]:
        profile, found = self.profile, []
        for code in targets_of(row["code"], profile, self.parents)[0]:
            tokens, rule = tokens_of_code(code, profile), rule_of(code, profile)[1]
            value = number_of(row)
            breaks = self.breaks.get((code, row["unit"]))
            if rule.values and profile.values != "codes_only" and value is not None and breaks is not None:
                bin_ = 1 + sum(cut < float(value) for cut in breaks)
                if profile.values == "pair":
                    tokens.append(f"VALUE/Q{bin_}")
                else:
                    tokens[-1] += f"//Q{bin_}"
            found += tokens
        return found

    def _add(self, subject: int, named: list[tuple[str, str]], at: datetime | None, key: str | None) -> None:
        for token, kind in named:
            known = token in self.vocabulary
            self.tokens.append((subject, token if known else "[UNK]", kind if known else "special", at, key))


def is_quantile(token: str) -> bool:
    return re.search(r"(^VALUE/|//)Q\d+$", token) is not None
