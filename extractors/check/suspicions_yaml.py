"""Choices in a source's YAML that are likely mistakes: those that show in the YAML alone."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from extractors.origins import origins, readings_of
from extractors.source import EventRule, Source, TableRule, template_columns
from extractors.source_model import reads_offsets
from extractors.time_rule import TimeRule

# Codes that a coder assigns for the bill, when the stay is over.
BILLING = re.compile(r"ICD[-_ ]?O?\d*[-_ ]?(CM|PCS|GM|CA|AM)?|(MS|APR)?[-_ ]?DRG|HCPCS|CPT\d?", re.I)
_STARTS = re.compile(r"admit|admission|arriv|in_?time$|(^|_)start|begin|reg_?time|check_?in|opened", re.I)
_PERSON = re.compile(
    r"((first|last|middle|maiden|sur|given|family|full|patient|person|doctor|physician|provider|nurse)_?name|surname"
    r"|ssn|passport|e_?mail|phone(_?number)?|street|address|zip|post_?code|postal_?code|birth_?date|dob)",
    re.I,
)
_IDENTIFIER = re.compile(
    r"((patient|person|subject|member|visit|encounter|stay|hadm|icustay|admission|accession|account|claim|specimen"
    r"|order|note|row|insurance|case)_?(id|no|nr|num|number|key|uuid)|mrn|csn|uuid|guid|udi|nhs_?number)",
    re.I,
)


@dataclass(frozen=True)
class Suspicion:
    """A choice that is likely a mistake.

    Attributes:
        check: its name, for programs.
        table: where it stands.
        rule: the code's template or the column.
        what, remedy: one line each.
    """

    check: str
    table: str
    rule: str
    what: str
    remedy: str


def namespace(code: str) -> str:
    """What stands before a code's first slash."""
    return code.partition("/")[0]


def in_yaml(source: Source) -> Iterator[Suspicion]:
    """What shows in the YAML alone."""
    starts = {
        (table, column)
        for table, rule in source.tables.items()
        for event in rule.events
        if event.kind == "visit_start" and event.time
        for column in event.time.column
    }
    for table, rule in source.tables.items():
        for event in rule.events:
            yield from _billed_at_the_start(table, rule, event, starts)
            yield from _telling_columns(source, table, rule, event)
        for join in rule.joins:
            other = source.tables.get(join.table)
            if not (join.optional or rule.optional) and (other is None or other.optional):
                yield Suspicion(
                    "join_of_an_optional_table", table, join.table,
                    f"{join.table} may be absent, and then a run stops", "mark the join `optional: true` too",
                )  # fmt: skip
    zone = source.reading.time_zone or source.time_zone
    if zone and not declares_offsets(source):
        yield idle_zone(zone)


def declares_offsets(source: Source) -> bool:
    """Whether some time of the source may have an offset."""
    return any(
        reads_offsets(time_format)
        for table, rule in source.tables.items()
        for time in times_of(rule)
        for reading in readings_of(source, table, time)
        for time_format in reading.rule.formats
    )


def idle_zone(zone: str) -> Suspicion:
    return Suspicion(
        "time_zone_without_offsets", "", "time_zone",
        f"no time has an offset, so {zone} changes nothing: every time is taken as it stands",
        "leave time_zone out, or read the offsets with %z",
    )  # fmt: skip


def times_of(rule: TableRule) -> list[TimeRule]:
    """What a table's rules read as times, each column and way of reading it once."""
    times = [time for event in rule.events for time in (event.time, event.available) if time]
    return list({key_of(time): time for time in times}.values())


def key_of(rule: TimeRule) -> str:
    """Equal for rules that read the same columns in the same way."""
    return rule.model_dump_json(exclude={"otherwise"})


def _may_bill(rule: TableRule, template: str) -> bool:
    """Whether a template's namespace is one of billing codes, as it is written or as `derive` writes it."""
    first = namespace(template)
    texts = [first]
    for column in template_columns(first):
        texts += re.findall(r"'([^']*)'", rule.derive.get(column, ""))
    return any(BILLING.fullmatch(namespace(text)) for text in texts)


def _billed_at_the_start(
    table: str, rule: TableRule, event: EventRule, starts: set[tuple[str, str]]
) -> Iterator[Suspicion]:
    if not _may_bill(rule, event.code):
        return
    known = event.available or event.time
    if known is None:
        yield Suspicion(
            "billing_code_without_time", table, event.code,
            "a code assigned at discharge has no time, so it counts as known from birth",
            "give it a time, and `available:` the end of the stay",
        )  # fmt: skip
        return
    found = [origin for column in known.column for origin in origins(table, rule, column)]
    early = [column for other, column in found if (other, column) in starts or _STARTS.search(column)]
    if early:
        what = "available" if event.available else "timed"
        yield Suspicion(
            "billing_code_at_the_start", table, event.code,
            f"a code assigned at discharge is {what} at {early[0]}, when the stay begins",
            "give `available:` the end of the stay, looked up with `joins` where it stands in another table",
        )  # fmt: skip


def _telling_columns(source: Source, table: str, rule: TableRule, event: EventRule) -> Iterator[Suspicion]:
    ids = {rule.subject or source.subject, rule.visit}
    for column in dict.fromkeys(template_columns(event.code)):
        if _PERSON.fullmatch(column):
            what = "looks like a person's name or address"
        elif column in ids or _IDENTIFIER.fullmatch(column):
            what = "looks like an identifier"
        else:
            continue
        yield Suspicion(
            "telling_code", table, event.code, f"{column} {what}, and codes are not de-identified",
            "make the code of columns that many patients share",
        )  # fmt: skip
