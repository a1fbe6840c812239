"""What a source would make of an export, for a terminal or a program: `extractors.check` with small cells hidden."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from extractors.check.explain import ROWS, Explanation, RuleFacts, TableFacts, explain
from extractors.source import Source, load_source
from extractors.tables.export import Export
from pipelines.config import SourceConfig, load_config
from validation.report.cells import SMALL, Cell, Cells, Hidden, follow
from warehouse.errors import TimeloomError

CLEAN, ERROR, SUSPICIOUS = 0, 1, 2
Description = dict[str, Any]
_CELLS = Cells(open=False)
_STATES = {"absent": "absent, and a run stops without it", "absent, optional": "absent, optional"}
_SCHEMA = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> str:
    """The JSON schema of a source's YAML, as docs/source.schema.json holds it."""
    schema = {"$schema": _SCHEMA, **Source.model_json_schema(), "title": "A source of timeloom"}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def check(
    name: str,
    path: Path | None = None,
    rows: int = ROWS,
    crosswalks: Sequence[str] = (),
    config: Path | None = None,
) -> Description:
    """Explains a source, by name or YAML file.

    Args:
        path: the export; without it only what the YAML says is checked.
        crosswalks: `NAME=FILE`.
        config: a run's configuration, whose `reading`, `crosswalks` and, where not given, `path` of this source hold;
            with one source it needs no name.

    Raises:
        TimeloomError: the YAML is no source, the export is not there, or it has no such crosswalk.
    """
    files: dict[str, Path] = {}
    if config is None:
        source = load_source(name)
    else:
        named = _of_config(config, name)
        source = load_source(named.source, config.parent.resolve()).read_as(named.reading)
        path, files = path or named.path, dict(named.crosswalks)
    for crosswalk in crosswalks:
        known, equals, file = crosswalk.partition("=")
        if not equals:
            raise TimeloomError(
                f"--crosswalk {crosswalk} is not NAME=FILE", remedy="such as --crosswalk rxnorm=ndc.csv"
            )
        files[known] = Path(file)
    export = Export(path, source, files) if path else None
    return describe(explain(source, export, rows), rows if export else 0)


def _of_config(config: Path, name: str) -> SourceConfig:
    """What a run's configuration says of a source, or of its only one."""
    found = [named for named in load_config(config).sources if name in ("", named.source)]
    if len(found) != 1:
        what = f"{len(found)} sources {name}".rstrip() if found else f"no source {name}"
        raise TimeloomError(f"{config.name} has {what}", remedy="name the source as the configuration does")
    return found[0]


def describe(explanation: Explanation, rows: int) -> Description:
    """The explanation as JSON. A count of 1 to 10 is `<11`, and one that would give it away is `withheld`.

    `exit_code`: 0 clean; 1 a table is missing or cannot be read, and a run would stop; 2 something is suspicious.
    """
    broken = any(table.error or table.state == "absent" for table in explanation.tables)
    return {
        "source": explanation.source,
        "rows_at_most": rows,
        "tables": [_table(table) for table in explanation.tables],
        "unmentioned_tables": explanation.unmentioned,
        "crosswalks_not_given": explanation.crosswalks,
        "suspicious": [vars(suspicion) for suspicion in explanation.suspicions],
        "exit_code": ERROR if broken else SUSPICIOUS if explanation.suspicions else CLEAN,
    }


def _shown(cell: Cell) -> Any:
    return cell if not isinstance(cell, Hidden) else "<11" if cell is SMALL else "withheld"


def _parts(values: dict[str, int]) -> dict[str, Any]:
    """Counts whose sum is known."""
    return dict(zip(values, map(_shown, _CELLS.parts([*values.values()])), strict=True))


def _table(table: TableFacts) -> Description:
    account = table.account
    ends = {"events": account.events, "static": account.static, "reference": account.reference}
    return {
        "table": table.table,
        "role": table.role,
        "state": table.state,
        "error": table.error,
        "rows": _shown(_CELLS.count(account.raw)),
        "became": _parts({name: number for name, number in {**ends, **account.quarantined}.items() if number}),
        "empty": {
            name: _shown(_CELLS.parts([seen["present"], seen["empty"]])[1])
            for name, seen in account.values.items()
            if seen["empty"]
        },
        "partial": {name: _shown(_CELLS.count(number)) for name, number in account.partial.items() if number},
        "rules": [_rule(rule) for rule in table.rules],
        "times": [
            {"column": time.column} | _parts({**time.formats, "unreadable": time.unreadable, "empty": time.empty})
            for time in table.times
        ],
        "joins": [
            {"table": join.table, "key": join.key, "absent": join.absent}
            | _parts({"found": join.found, "missed": join.missed, "without_key": join.keyless})
            for join in table.joins
        ],
        "subjects": _parts({"known_elsewhere": table.subjects.known, "in_no_other_table": table.subjects.alone})
        if table.subjects
        else {},
        "mapped_columns": table.mapped,
        "unmapped_columns": table.unmapped,
        "noticed": table.noticed,
    }


def _rule(rule: RuleFacts) -> Description:
    cells = _CELLS.parts([*(made_events.events for made_events in rule.made), rule.silent])
    made = [
        {
            "namespace": value.namespace,
            "events": _shown(events),
            "subjects": _shown(follow(events, _CELLS.count(value.subjects))),
        }
        for value, events in zip(rule.made, cells[:-1], strict=True)
    ]
    said = ("code", "kind", "time", "available", "value", "unit", "where")
    return {name: getattr(rule, name) for name in said} | {"made": made, "common_codes": rule.common}


def print_check(description: Description, console: Console) -> None:
    """The same for a person."""
    tables = description["tables"]
    read = [table for table in tables if table["state"] == "read" and not table["error"]]
    if description["rows_at_most"]:
        _say(
            console,
            f"source {description['source']}: {len(read)} of {len(tables)} tables read, at most "
            f"{description['rows_at_most']:,} rows of each; counts of 1 to 10 are not shown",
        )
    else:
        _say(
            console, f"source {description['source']}: {len(tables)} tables; no export given, only the YAML is checked"
        )
    for table in tables:
        _print_table(table, console)
    console.print()
    if names := description["unmentioned_tables"]:
        _say(console, f"no rule mentions: {', '.join(names[:20])}{' …' if len(names) > 20 else ''}")
    if names := description["crosswalks_not_given"]:
        _say(console, f"crosswalks not given: {', '.join(names)}")
    if not description["suspicious"]:
        _say(console, "nothing is suspicious")
        return
    _say(console, f"suspicious: {len(description['suspicious'])}")
    for suspicion in description["suspicious"]:
        where = " ".join(part for part in (suspicion["table"], suspicion["rule"]) if part)
        _say(console, f"- {where}: {suspicion['what']}; {suspicion['remedy']} [{suspicion['check']}]")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _counts(counts: Description) -> str:
    return ", ".join(
        f"{number:,} {name}" if isinstance(number, int) else f"{number} {name}" for name, number in counts.items()
    )


def _print_table(table: Description, console: Console) -> None:
    console.print()
    name = table["table"]
    if table["error"]:
        _say(console, f"{name}: cannot be read: {table['error']}")
        return
    if table["state"] != "read":
        _say(console, f"{name}: {_STATES.get(table['state'], table['role'])}")
    else:
        _say(console, f"{name}: {_counts({'rows': table['rows']})}: {_counts(table['became']) or 'nothing'}")
    if table["state"].startswith("absent"):
        return
    for noticed in table["noticed"]:
        _say(console, f"  {noticed}")
    if table["rules"]:
        console.print(Padding(_rules(table["rules"], counted=table["state"] == "read"), (0, 0, 0, 2), expand=False))
    for rule in table["rules"]:
        if rule["common_codes"]:
            _say(console, f"  most frequent of {rule['code']}: {', '.join(rule['common_codes'])}")
    for time in table["times"]:
        counts = {
            f"as {key}" if "%" in key else key: number for key, number in time.items() if key != "column" and number
        }
        _say(console, f"  time {time['column']}: {_counts(counts) or 'never there'}")
    for join in table["joins"]:
        counts = {key.replace("_", " "): join[key] for key in ("found", "missed", "without_key") if join[key]}
        found = "absent" if join["absent"] else _counts(counts)
        _say(console, f"  join {join['table']} by {join['key']}{': ' if found else ''}{found}")
    if table["subjects"]:
        _say(
            console,
            f"  patients: {_counts({key.replace('_', ' '): value for key, value in table['subjects'].items()})}",
        )
    if table["empty"]:
        _say(console, f"  empty values, which make no event: {_counts(table['empty'])}")
    if table["partial"]:
        _say(console, f"  events of which something failed: {_counts(table['partial'])}")
    for kind in ("mapped", "unmapped"):
        if names := table[f"{kind}_columns"]:
            _say(console, f"  {kind} columns: {', '.join(names)}")


def _rules(rules: list[Description], *, counted: bool) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("code", "time", "available", "value", "unit", *(("makes", "events", "subjects") if counted else ())):
        numeric = name in ("events", "subjects")
        grid.add_column(name, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for rule in rules:
        code = f"{rule['code']}\nwhere {rule['where']}" if rule["where"] else rule["code"]
        available = rule["available"] or ("= time" if rule["time"] else "")
        said = [Text(cell) for cell in (code, rule["time"] or "static", available, rule["value"], rule["unit"])]
        if not counted:
            grid.add_row(*said)
            continue
        for made in rule["made"] or [{"namespace": "", "events": 0, "subjects": 0}]:
            counts = [
                f"{made[name]:,}" if isinstance(made[name], int) else made[name] for name in ("events", "subjects")
            ]
            grid.add_row(*said, Text(made["namespace"]), *counts)
            said = [Text("") for _ in said]
    return grid
