"""Plans: how timelines of a profile are laid into packs. A profile has one, and any number of further ones by name."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

DEFAULT = "default"


def _own_name(name: str) -> str:
    if name == DEFAULT:
        raise ValueError(f"{DEFAULT} is the name of the profile's own plan")
    return name


# A name that becomes part of a folder's.
PlanName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$"), AfterValidator(_own_name)]


class PlanConfig(BaseModel):
    """One way to fill packs from timelines; a further plan costs no tokenising.

    Attributes:
        context: tokens a pack, padding included; the profile's where not given.
        mode: `packed` (best fit, segments of several subjects in a pack), `one_subject_per_sequence`, or `last_n`
            (the last `context` tokens of each timeline; what stands before is a declared drop).
        subjects: all, or `imaging`: those with at least one image token.
        images: whether image tokens are kept.
        budgets: loss-bearing tokens of nested subsets of train, increasing; tuning and held_out are written whole.
        loss: whose targets the budgets count, see warehouse.losses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: int | None = Field(default=None, ge=8, le=1 << 20)
    mode: Literal["packed", "one_subject_per_sequence", "last_n"] = "packed"
    subjects: Literal["all", "imaging"] = "all"
    images: bool = True
    budgets: tuple[Annotated[int, Field(ge=1)], ...] = ()
    loss: Literal["mehrt", "multimodal"] = "mehrt"

    @model_validator(mode="after")
    def _loss_of_budgets(self) -> "PlanConfig":
        if self.loss != "mehrt" and not self.budgets:
            raise ValueError("loss says what budgets count, and the plan has none; a reader chooses its own loss")
        return self

    @property
    def length(self) -> int:
        """Tokens a pack, of a plan that `plans_of` gave."""
        if self.context is None:
            raise ValueError("the plan has no context of its own")
        return self.context

    @field_validator("budgets")
    @classmethod
    def _increasing(cls, budgets: tuple[int, ...]) -> tuple[int, ...]:
        if any(later <= earlier for earlier, later in pairwise(budgets)):
            raise ValueError("budgets do not increase")
        return budgets


def plans_of(context: int, plans: Mapping[str, PlanConfig]) -> dict[str, PlanConfig]:
    """A profile's plans by name, its own first, each with its context.

    Args:
        context: the profile's tokens a pack.
        plans: its further plans.
    """
    named = {DEFAULT: PlanConfig(), **plans}
    return {name: plan.model_copy(update={"context": plan.context or context}) for name, plan in named.items()}
