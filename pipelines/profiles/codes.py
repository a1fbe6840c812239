"""Codes to groups of tokens and back: done once for each distinct code, by the profile's rules.

Sources: ICD-10-CM as characters 3 | 4–6 | 7 (MEHRT §2.1; Renc et al. 2024). Pieces have namespaces of their own,
because 57 ICD-10-CM categories equal tails of other codes and 49 ICD-10-PCS tables equal ICD-10-CM categories.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
import pyarrow.compute as pc

from pipelines.profiles.rules import NamespaceRule, ProfileConfig
from warehouse.tokens import INTERVAL, RESERVED, TIMELINE_END, VALUE

COMMON_CHARACTERS = 3
# What a token of a rule begins with can be no code: such a code is told from it by a namespace of its own.
_TAKEN = rf"^(\[|{VALUE}/|{INTERVAL}/|{TIMELINE_END}$|CODE/)"
_FUSED = r"//Q\d+/*$"
_VALUED = re.compile(r"//Q\d+$")
GROUPS = pl.Schema(
    [
        ("place", pl.UInt32()),
        ("code", pl.String()),
        ("target", pl.String()),
        ("tokens", pl.List(pl.String)),
        ("reason", pl.String()),
        ("values", pl.Boolean()),
        ("only_numeric", pl.Boolean()),
        ("top", pl.Boolean()),
    ]
)


def groups_of(codes: pl.Series, profile: ProfileConfig, parents: pl.DataFrame | None = None) -> pl.DataFrame:
    """What each distinct code becomes: one row a group of tokens, in order; one row with a reason where it is left out.

    Args:
        codes: (n,) distinct codes.
        parents: columns code and parent_codes, as in metadata/codes.parquet.

    Returns:
        Columns of GROUPS, in the order of `codes`: `place` is the code's, `target` the code after parents; `values`,
        `only_numeric` and `top` are its rule's switches.
    """
    found = _through_parents(codes, profile, parents)
    named = begins_with("target", profile.namespaces) & ~begins_with("target", profile.left_out)
    no_parent, other = pl.lit("no_parent"), pl.lit("namespace_not_in_profile")
    found = found.with_columns(
        pl.when(~named).then(pl.when("fell_back").then(no_parent).otherwise(other)).alias("reason")
    )
    if len(found) > len(codes):
        # Of several parents only those count that the profile names; where it names none, one row tells why.
        kept = found.filter(pl.col("reason").is_null()).unique(["place", "target"])
        rest = found.join(kept, on="place", how="anti").unique("place")
        found = pl.concat([kept, rest])
    return _with_tokens(found, profile).sort("place", "target").select(GROUPS.names())


def _rules_of(codes: pl.Series, profile: ProfileConfig) -> pl.Series:
    """Of each code (n,) the longest beginning among the profile's rules, as its place among them; null where none fits.

    As `begins_with` says, in a quarter of its time.
    """
    slashed = (codes + "/").to_arrow()
    found = np.full(len(codes), -1, np.int32)
    for number, key in sorted(enumerate(profile.codes), key=lambda rule: len(rule[1])):
        found[pc.starts_with(slashed, pattern=f"{key}/").to_numpy(zero_copy_only=False)] = number
    return pl.Series("rule", found).replace(-1, None)


def begins_with(column: str, beginnings: Iterable[str] | None) -> pl.Expr:
    """Whether a code is one of the beginnings, or goes on behind one with a slash; with None it always is."""
    if beginnings is None:
        return pl.lit(True)
    code = pl.col(column)
    given = list(beginnings)
    listed = code.is_in(pl.Series(given, dtype=pl.String).implode())
    return pl.any_horizontal(listed, *(code.str.starts_with(f"{value}/") for value in given))


def _through_parents(codes: pl.Series, profile: ProfileConfig, parents: pl.DataFrame | None) -> pl.DataFrame:
    """Columns place, code, target, rule (the target's) and fell_back: no parent where the rule asks for one."""
    frame = codes.cast(pl.String).rename("code").to_frame().with_row_index("place")
    frame = frame.with_columns(
        _rules_of(frame["code"], profile), pl.col("code").alias("target"), pl.lit(False).alias("fell_back")
    )
    asking = {number: rule for number, rule in enumerate(profile.codes.values()) if rule.parents}
    asks = pl.col("rule").is_in(list(asking)).fill_null(False)
    asked = frame.filter(asks)
    if asked.is_empty():
        return frame
    parts = [frame.filter(~asks)]
    if parents is None:
        parents = pl.DataFrame(schema={"code": pl.String, "parent_codes": pl.List(pl.String)})
    linked = (
        asked.drop("target")
        .join(parents.select("code", pl.col("parent_codes").alias("target")), on="code")
        .explode("target")
        .drop_nulls("target")
        .unique()
    )
    for number, rule in asking.items():
        of_rule = pl.col("rule") == number
        parts.append(_chosen(asked.filter(of_rule), linked.filter(of_rule), rule).select(frame.columns))
    together = pl.concat(parts)
    return together.with_columns(_rules_of(together["target"], profile))


def _chosen(asked: pl.DataFrame, linked: pl.DataFrame, rule: NamespaceRule) -> pl.DataFrame:
    """The parents of one rule's codes, as the rule takes them; the codes themselves where it takes none."""
    places = [pl.when(begins_with("target", [parent])).then(place) for place, parent in enumerate(rule.parents)]
    of_kind = linked.with_columns(pl.coalesce(*places, pl.lit(None, pl.Int32)).alias("kind")).drop_nulls("kind")
    best = of_kind.filter(pl.col("kind") == pl.col("kind").min().over("place"))
    if rule.several != "each":
        several = pl.len().over("place") > 1
        alone, together = best.filter(~several), best.filter(several)
        best = alone if rule.several == "keep" else pl.concat([alone, _in_common(together, rule)])
    rest = asked.join(best, on="place", how="anti").with_columns(pl.lit(True).alias("fell_back"))
    return pl.concat([best.select(asked.columns), rest])


def _in_common(linked: pl.DataFrame, rule: NamespaceRule) -> pl.DataFrame:
    """What several parents of a code begin with alike, where that is long enough."""
    columns = [name for name in linked.columns if name not in ("place", "target")]
    ends = linked.group_by("place").agg(
        *(pl.col(name).first() for name in columns),
        pl.col("target").min(),
        pl.col("target").max().alias("greatest"),
    )
    # What all texts begin with is what the least and the greatest of them begin with.
    pairs = ends.select("target", "greatest", "kind").iter_rows()
    common = [least[: _alike(least, greatest)] for least, greatest, _ in pairs]
    shortest = pl.Series([len(parent) + 1 + COMMON_CHARACTERS for parent in rule.parents])
    agreed = ends.with_columns(pl.Series("target", common, pl.String))
    return agreed.filter(agreed["target"].str.len_chars() >= shortest.gather(agreed["kind"])).select(linked.columns)


def _alike(code: str, other: str) -> int:
    return next((place for place, pair in enumerate(zip(code, other, strict=False)) if pair[0] != pair[1]), len(code))


def _with_tokens(groups: pl.DataFrame, profile: ProfileConfig) -> pl.DataFrame:
    """Adds each group's tokens and its rule's switches."""
    parts = [pl.DataFrame(schema=GROUPS)]
    rules = [(None, "", NamespaceRule()), *((number, *code) for number, code in enumerate(profile.codes.items()))]
    by_rule = groups.partition_by("rule", as_dict=True)
    for number, key, rule in rules:
        rows = by_rule.get((number,))
        if rows is None:
            continue
        parts.append(
            rows.select(
                "place",
                "code",
                "target",
                _tokens(key, rule, fused=profile.values == "fused").alias("tokens"),
                "reason",
                pl.lit(rule.values and profile.values != "codes_only").alias("values"),
                pl.lit(rule.only_numeric).alias("only_numeric"),
                pl.lit(rule.top is not None).alias("top"),
            )
        )
    return pl.concat(parts)


def _tokens(key: str, rule: NamespaceRule, *, fused: bool) -> pl.Expr:
    target = pl.col("target")
    whole = pl.when(target.str.contains(_TAKEN)).then("CODE/" + target).otherwise(target)
    if fused:
        whole = pl.when(target.str.contains(_FUSED)).then(whole + "/").otherwise(whole)
    pieces = rule.pieces_of(key)
    if not pieces:
        return pl.concat_list(whole)
    body = target.str.slice(len(key) + 1)
    below = target.str.starts_with(f"{key}/")
    cut = below & ~body.str.contains("/", literal=True)
    tokens, start = [], 0
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        part = body.str.slice(start) if last else body.str.slice(start, piece.length)
        start += piece.length
        has_part = cut & (part != "") if number else cut
        tokens.append(pl.when(has_part).then(pl.lit(f"{piece.namespace}/") + part))
    # A slash in the body could make it look like a piece.
    uncut = pl.when(below).then(pl.lit(f"{key}//") + body).otherwise(whole)
    return pl.when(cut).then(pl.concat_list(*tokens).list.drop_nulls()).otherwise(pl.concat_list(uncut))


def pieces_of(codes: pl.Series, profile: ProfileConfig) -> pl.DataFrame:
    """Distinct codes as tokens, whatever the profile leaves out: columns code, token, piece (0, 1, …), in order."""
    every = profile.model_copy(update={"namespaces": None, "left_out": ()})
    groups = groups_of(codes.unique().sort(), every)
    piece = pl.int_ranges(pl.col("tokens").list.len())
    return groups.select("code", pl.col("tokens").alias("token"), piece.alias("piece")).explode("token", "piece")


def codes_of(tokens: Sequence[str], profile: ProfileConfig) -> list[str]:
    """The codes that tokens came from, in order: the inverse of `pieces_of`. What is no code's token is passed over."""
    pieces = {
        piece.namespace: (key, number)
        for key, rule in profile.codes.items()
        for number, piece in enumerate(rule.pieces_of(key) if rule.pieces else ())
    }
    cut = sorted({key for key, _ in pieces.values()}, key=len, reverse=True)
    special = {name for name, _ in RESERVED} | {TIMELINE_END}
    codes: list[str] = []
    for token in tokens:
        namespace, _, body = token.rpartition("/")
        if token in special or namespace in (VALUE, INTERVAL):
            continue
        key, number = pieces.get(namespace, ("", 0))
        if number:
            codes[-1] += body
        elif key:
            codes.append(f"{key}/{body}")
        else:
            codes.append(_whole(token, cut, profile))
    return codes


def _whole(token: str, cut: Sequence[str], profile: ProfileConfig) -> str:
    for key in cut:
        if token.startswith(f"{key}//"):
            return f"{key}/{token[len(key) + 2 :]}"
    if profile.values == "fused":
        if _VALUED.search(token):
            token = _VALUED.sub("", token)
        if re.search(r"//Q\d+/+$", token):
            token = token[:-1]
    return token.removeprefix("CODE/")
