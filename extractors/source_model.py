"""What every part of a source's YAML is made of."""

import inspect
import re
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def listed(value: Any) -> Any:
    """A list, where one text is meant as the only one."""
    return [value] if isinstance(value, str) else value


Columns = Annotated[list[str], BeforeValidator(listed, json_schema_input_type=str | list[str])]


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Puts what the docstrings say of a model's attributes into its JSON schema, for editors."""
    schema["description"] = inspect.cleandoc(model.__doc__ or "").partition("\n\nAttributes:\n")[0]
    for base in reversed(model.__mro__):
        _, _, listed = inspect.cleandoc(base.__doc__ or "").partition("\n\nAttributes:\n")
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", listed, flags=re.M):
            if name in schema["properties"]:
                schema["properties"][name]["description"] = re.sub(r"\s+", " ", text)


class SourceModel(BaseModel):
    """A part of a source's YAML: frozen, without unknown keys, described for editors by its docstring."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_describe)


_DIRECTIVE = re.compile(r"%[-_0^#.:]*\d?[A-Za-z%]")
_OF_THE_DAY = re.compile("%[-_0]?[HIkl]|%R|%T")
_UTC = ("UTC", "GMT", "UT", "Z")


def _words(time_format: str) -> list[str]:
    """What a strptime format that reads a time of day and no zone says as it stands."""
    if not _OF_THE_DAY.search(time_format) or re.search("%#?z|%Z", time_format):
        return []
    return re.findall("[A-Za-z]+", _DIRECTIVE.sub(" ", time_format))


@lru_cache
def names_utc(time_format: str) -> bool:
    """Whether a format says itself that its times have offset 0: `%H:%M:%S UTC`, `%H:%M:%SZ`."""
    return any(word in _UTC for word in _words(time_format))


@lru_cache
def reads_offsets(time_format: str) -> bool:
    """Whether what a format reads is a moment whatever the wall clock."""
    return "%z" in time_format or "%Z" in time_format or names_utc(time_format)


@lru_cache
def check_format(time_format: str) -> None:
    """Refuses a strptime format that reads less than it seems to.

    Raises:
        ValueError: says why.
    """
    if re.search("%[HI]", time_format) and not re.search("%M|%R|%T", time_format):
        raise ValueError(f"the format {time_format} has an hour without minutes")
    for word in _words(time_format):
        if re.fullmatch("[A-Z]{3,5}", word) and word not in _UTC:
            raise ValueError(
                f"the format {time_format} names the zone {word}, which nothing reads: only UTC, GMT and Z are "
                "known by name; write %z where an offset stands, or declare `time_zone`"
            )
