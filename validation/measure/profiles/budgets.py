"""Token budgets: what each holds, as the manifest says and `budget_differences` checks; shown without small cells."""

from collections.abc import Mapping

import polars as pl

from warehouse.manifest import ProfileEntry

BUDGETS = pl.Schema(
    {
        "profile": pl.String,
        "plan": pl.String,
        "asked": pl.Int64,
        "tokens": pl.Int64,
        "all_tokens": pl.Int64,
        "subjects": pl.Int64,
    }
)


def list_budgets(profiles: Mapping[str, ProfileEntry]) -> pl.DataFrame:
    """One row per profile, plan and token budget; columns of BUDGETS."""
    rows = [
        {"profile": profile, "plan": name} | budget.model_dump(include=set(BUDGETS))
        for profile, entry in profiles.items()
        for name, plan in entry.plans.items()
        for budget in plan.budgets
    ]
    return pl.DataFrame(rows, schema=BUDGETS)
