"""SQL of a source's YAML: worked out row by row, on columns of text, and without failing where a text is no number.

Rows are read a block at a time, so that an expression that looks at other rows would give another result per block.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import polars as pl

# What gives a row's value from that row alone. Of the functions, those that begin a name stand for all with arguments.
_NODES = frozenset({"Alias", "BinaryExpr", "Cast", "Column", "Function", "Literal", "Ternary"})
_FUNCTIONS = frozenset(
    {
        "Abs", "Cbrt", "Ceil", "Clip", "Coalesce", "Exp", "FillNull", "Floor", "Log", "Log1p", "MaxHorizontal",
        "MinHorizontal", "Negate", "Pow", "Round", "RoundSF", "Sign", "StringExpr", "TemporalExpr", "Trigonometry",
        "Truncate",
    }
)  # fmt: skip
_OF_CATEGORY = {
    "Boolean": {
        "AllHorizontal", "AnyHorizontal", "IsBetween", "IsFinite", "IsIn", "IsInfinite", "IsNan", "IsNotNan",
        "IsNotNull", "IsNull", "Not",
    },
    "ListExpr": {"Get", "Length"},
}  # fmt: skip
_TEMPORAL = (pl.Date, pl.Datetime, pl.Time)


@dataclass(frozen=True)
class Expression:
    """An expression over columns of text.

    Attributes:
        made: its value, null where a cast fails.
        roots: the columns that it names.
        failed: whether a cast fails whose value is then missing; None where none can. A TRY_CAST never does.
        dtype: of `made`.
    """

    made: pl.Expr
    roots: tuple[str, ...]
    failed: pl.Expr | None
    dtype: pl.DataType


@lru_cache(1 << 12)
def expression(text: str) -> Expression:
    """An expression from SQL.

    Raises:
        ValueError: no SQL, or one that does not fit texts, or looks at more than its row.
    """
    try:
        given = pl.sql_expr(text)
        tree: Any = json.loads(given.meta.serialize(format="json"))
    except pl.exceptions.PolarsError:
        raise ValueError(f"`{text}` is no SQL expression") from None
    for node in _nodes(tree):
        _check_node(text, node)
    roots = tuple(dict.fromkeys(given.meta.root_names()))
    empty = pl.DataFrame(schema=dict.fromkeys(roots, pl.String))
    casts = list(_without_failing(text, tree, empty))
    made = _from_tree(tree)
    failing = [value.is_null() & operand.is_not_null() for operand, value in casts]
    failed = reduce(lambda left, right: left | right, failing) & made.is_null() if failing else None
    return Expression(made, roots, failed, _dtype(text, made, empty))


@lru_cache(1 << 12)
def check_expression(text: str, *, condition: bool) -> None:
    """Refuses what cannot be worked out.

    Args:
        condition: whether it must be true or false; else it becomes a text.

    Raises:
        ValueError: says why.
    """
    dtype = expression(text).dtype
    if condition and dtype not in (pl.Boolean, pl.Null):
        raise ValueError(f"`{text}` is no condition: it is neither true nor false")
    if not condition and (dtype.is_nested() or dtype in (pl.Duration, pl.Binary)):
        raise ValueError(f"`{text}` gives a {dtype.base_type().__name__.lower()}, which is no text and no number")


def _nodes(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every node of an expression's tree: its kind, and what it holds."""
    if isinstance(tree, str):
        yield tree, {}
        return
    ((kind, body),) = tree.items()
    yield kind, body
    for below in _below(kind, body):
        yield from _nodes(below)


def _below(kind: str, body: Any) -> list[Any]:
    match kind:
        case "Alias":
            return [body[0]]
        case "BinaryExpr":
            return [body["left"], body["right"]]
        case "Cast":
            return [body["expr"]]
        case "Function":
            return list(body["input"])
        case "Ternary":
            return [body["predicate"], body["truthy"], body["falsy"]]
    return []


def _check_node(text: str, node: tuple[str, Any]) -> None:
    kind, body = node
    if kind == "Function":
        function = body["function"]
        name, inner = (function, None) if isinstance(function, str) else next(iter(function.items()))
        inner = inner if isinstance(inner, str | None) else next(iter(inner), None)
        if name == "StringExpr" and inner == "ConcatVertical":
            name = inner
        known = name in _FUNCTIONS or inner in _OF_CATEGORY.get(name, ())
    else:
        known = kind in _NODES
    if not known:
        raise ValueError(
            f"`{text}` looks at more than its row: rows are read a block at a time, so window and aggregate functions "
            "would give another result per block"
        )


def _without_failing(text: str, tree: Any, empty: pl.DataFrame) -> Iterator[tuple[pl.Expr, pl.Expr]]:
    """Makes every cast of a tree give null where it fails, in place; gives what each casts, and its value."""
    if isinstance(tree, str):
        return
    ((kind, body),) = tree.items()
    for below in _below(kind, body):
        yield from _without_failing(text, below, empty)
    strict, operand = False, None
    if kind == "Cast":
        strict, operand = body["options"] == "Strict", body["expr"]
        body["options"] = "NonStrict"
    elif kind == "Function" and isinstance(body["function"], dict):
        inner = body["function"].get("StringExpr")
        if isinstance(inner, dict) and "Strptime" in inner:
            options = inner["Strptime"][1]
            if options["format"] is None:
                raise ValueError(f"`{text}` reads a time and does not say how: give the format as a further argument")
            strict, operand = options["strict"], body["input"][0]
            options["strict"] = False
    if operand is None:
        return
    value = _from_tree(tree)
    of_text = kind == "Cast" and _dtype(text, _from_tree(operand), empty) == pl.String
    if of_text and _dtype(text, value, empty) in _TEMPORAL:
        raise ValueError(f"`{text}` casts a text to a time: write STRPTIME(column, format)")
    if strict:
        yield _from_tree(operand), value


def _from_tree(tree: Any) -> pl.Expr:
    return pl.Expr.deserialize(io.StringIO(json.dumps(tree)), format="json")


def _dtype(text: str, made: pl.Expr, empty: pl.DataFrame) -> pl.DataType:
    try:
        return (empty if empty.width else pl.DataFrame({"": [0]})).select(made.alias("made")).dtypes[0]
    except pl.exceptions.PolarsError:
        raise ValueError(
            f"`{text}` does not fit its columns: they are texts, and a number needs a CAST or TRY_CAST"
        ) from None
