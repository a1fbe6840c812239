"""Where a time stands in a row, and how it is written."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from extractors.source_model import Columns, SourceModel, check_format

DEFAULT_FORMATS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M:%S%z",
    "%Y-%m-%d %H:%M:%S%z",
    "%Y-%m-%dT%H:%M:%S%.f%z",
    "%Y-%m-%d %H:%M:%S%.f%z",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M%z",
    "%Y-%m-%d %H:%M%z",
)


class TimeRule(SourceModel):
    """Where a time stands.

    Attributes:
        column: the first of these that is not null is taken.
        formats: strptime formats tried in order; one without a time of day gives a date, one with `%z` reads an offset.
        anchor: a date (or year) stands at the `end` of its span, so that nothing uses it early, or at its `start`.
        midnight_is_date: 00:00:00 means that only the day is known.
    """

    column: Columns
    formats: Columns = Field(default_factory=lambda: list(DEFAULT_FORMATS))
    anchor: Literal["start", "end"] = "end"
    midnight_is_date: bool = False

    @model_validator(mode="after")
    def _checked(self) -> "TimeRule":
        for time_format in self.formats:
            check_format(time_format)
        return self


def _time_rule(value: Any) -> Any:
    return {"column": value} if isinstance(value, (str, list)) else value


class AvailableRule(TimeRule):
    """Where the moment stands at which a fact could first be read.

    Attributes:
        otherwise: what holds where no such moment stands: the fact's own `time`; or `lag`, its time and the 95th
            percentile of what that code's other rows took, which is marked as an estimate. Where the moment was to be
            looked up and the join missed, it is `lag` in either case.
    """

    otherwise: Literal["time", "lag"] = "time"


Time = Annotated[TimeRule, BeforeValidator(_time_rule, json_schema_input_type=str | list[str] | TimeRule)]
Available = Annotated[
    AvailableRule, BeforeValidator(_time_rule, json_schema_input_type=str | list[str] | AvailableRule)
]
