"""YAML files that people write: what is wrong in one is said with its line, its column and its key."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from warehouse.errors import TimeloomError

# How alike a misspelt key is to the one that is meant, of difflib's ratio.
_ALIKE = 0.5


# libyaml's, where there is one, takes a tenth of the time.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, which besides refuses a key that stands twice in a mapping: one of the two would go unread."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value} stands twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def parse_yaml(text: bytes, name: str, page: str) -> Any:
    """What a YAML file says.

    Args:
        name: what errors call the file.
        page: the page of the documentation that explains its keys.

    Raises:
        TimeloomError: no YAML, with line, column and cause.
    """
    try:
        return yaml.load(text.decode("utf-8-sig"), Loader=_Loader)
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise TimeloomError(f"{name} is no YAML: line {line} is not UTF-8", remedy=f"see {page}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        begun = f", {error.context} of line {error.context_mark.line + 1}" if error.context_mark else ""
        raise TimeloomError(f"{name} is no YAML: {place}{error.problem}{begun}", remedy=f"see {page}") from error
    except yaml.reader.ReaderError as error:
        line = text.decode("utf-8-sig").count("\n", 0, error.position) + 1
        raise TimeloomError(f"{name} is no YAML: line {line}: {error.reason}", remedy=f"see {page}") from error


def read_yaml(path: Path, name: str, page: str) -> Any:
    """Reads a YAML file; see `parse_yaml`.

    Raises:
        OSError: the file cannot be read.
        TimeloomError: no YAML.
    """
    return parse_yaml(path.read_bytes(), name, page)


def explain(error: ValidationError, model: type[BaseModel], blocks: Mapping[str, type[BaseModel]] | None = None) -> str:
    """What is wrong with settings, in one sentence; for an unknown key with the nearest known one.

    Args:
        model: what the settings were held against.
        blocks: of keys of `model` that are validated by other models than their annotations name, these models.
    """
    # A misspelt key is also a missing one: the spelling is what helps.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        said = first["msg"].removeprefix("Value error, ")
        return f"{where}: {said}" if where else said
    *path, key = first["loc"]
    annotation: Any = model
    for part in path:
        annotation = (
            blocks[str(part)] if annotation is model and blocks and part in blocks else _below(annotation, part)
        )
    known = [name for inner in _options(annotation) if _is_model(inner) for name in inner.model_fields]
    close = difflib.get_close_matches(str(key), known, 1, _ALIKE)
    nearest = f"did you mean {close[0]}?" if close else f"known keys are {', '.join(known)}"
    return f"the key {where} is unknown, {nearest}"


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _options(annotation: Any) -> list[Any]:
    """The types that an annotation allows, without what is said of them."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [option for argument in get_args(annotation) for option in _options(argument)]
    return [annotation]


def _below(annotation: Any, part: str | int) -> Any:
    """The annotation one step down an error's path: of a field, a dictionary's value, a list's entry."""
    for option in _options(annotation):
        if _is_model(option) and part in option.model_fields:
            return option.model_fields[part].annotation
        if get_origin(option) is dict:
            return get_args(option)[1]
        if get_origin(option) is list and isinstance(part, int):
            return get_args(option)[0]
    return annotation
