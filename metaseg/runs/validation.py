"""Validate settings, in sentences about invalid values, and describe them."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

import annotated_types
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from metaseg.errors import MetasegError, quoted
from metaseg.runs.schema import Group

Settings = TypeVar("Settings", bound=Group)


def checked(kind: type[Settings], settings: Mapping[str, Any]) -> Settings:
    """Validate settings and return them as typed, immutable values.

    Args:
        kind: `Run`, `Adaptation`, `Page`, `Pretraining`, or one of their groups.
        settings: resolved settings as plain containers.

    Raises:
        MetasegError: one sentence per invalid value.
    """
    try:
        valid = kind.model_validate(settings)
    except ValidationError as error:
        wrong: dict[str, tuple[list[str], str, str]] = {}
        for one in error.errors():
            path = _path(kind, one["loc"])
            found = "nothing" if one["type"] == "missing" else quoted(one["input"])
            wrong.setdefault(".".join(path), (path, found, one["type"]))
        raise MetasegError(" ".join(_sentence(kind, *one) for one in wrong.values())) from None
    valid._plain = dict(settings)
    return valid


def fitted(annotation: Any, key: str, value: Any) -> Any:
    """Validate a single value, as `checked` does; `key`: its name, for the message.

    Raises:
        MetasegError: the value is invalid.
    """
    one = create_model("One", __base__=Group, value=(annotation, Field(alias=key)))
    return checked(one, {key: value}).value  # type: ignore[attr-defined]


def read(kind: type[Settings], config: DictConfig) -> Settings:
    """Validate a composed configuration, as `checked`.

    Raises:
        MetasegError: one sentence per invalid value.
        omegaconf.errors.MissingMandatoryValue: a required setting is missing.
    """
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return checked(kind, cast(dict[str, Any], plain))


def _sentence(kind: type[BaseModel], path: list[str], found: str, what: str) -> str:
    key, field = ".".join(path), _field(kind, path)
    if field is None or what == "extra_forbidden":
        near = nearest(key, (one.key for one in documented(kind)))
        return f"{key} is not a setting of this version, found {found}: {near or 'remove it.'}"
    meaning = f" ({field.description})" if field.description else ""
    return f"{key} must be {expected(field)}, found {found}{meaning}."


def nearest(key: str, known: Iterable[str]) -> str:
    """`did you mean KEY?` with the closest known key, or an empty string."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.8)
    return f"did you mean {near[0]}?" if near else ""


def _path(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The keys in a pydantic location, without its union members and list positions."""
    found: list[str] = []
    for part in place:
        known = _model(kind, found)
        if isinstance(part, str) and known is not None and not part.endswith("]"):
            found.append(part)
    return found


def _model(kind: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    for key in path:
        field = _own(kind, key)
        model = None if field is None else _group(field.annotation)
        if model is None:
            return None
        kind = model
    return kind


def _field(kind: type[BaseModel], path: list[str]) -> FieldInfo | None:
    model = _model(kind, path[:-1])
    return None if model is None else _own(model, path[-1])


def _own(kind: type[BaseModel], key: str) -> FieldInfo | None:
    return next((field for name, field in kind.model_fields.items() if key in (name, field.alias)), None)


def _group(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation, possibly optional."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def expected(field: FieldInfo) -> str:
    """The allowed values of a setting, in words."""
    return in_words(field.annotation, tuple(field.metadata))


def in_words(annotation: Any, limits: tuple[Any, ...] = ()) -> str:
    """The values of a type within limits, in words."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(members[0], tuple(_limits((*members[1:], *limits))))
    if origin is Literal:
        return f"one of {', '.join(map(str, members))}" if len(members) > 1 else str(members[0])
    if annotation is type(None):
        return "null"
    if origin is list:
        if any(isinstance(one, BeforeValidator) for one in limits):
            return "a name or different names"
        return f"a list of {in_words(members[0]).removeprefix('one of ')}"
    if origin is dict:
        return "a group of settings"
    if members:
        return " or ".join(in_words(one) for one in members)
    if annotation is Any:
        return "as conf/ shows"
    if _group(annotation) is not None:
        return "a group of settings"
    if annotation is str and (lengths := {type(one): one for one in _limits(limits)}).get(annotated_types.MinLen):
        longest = lengths.get(annotated_types.MaxLen)
        return "a path" if longest is None else f"text of 1 to {longest.max_length} characters"
    name = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(annotation, "a mapping")
    return name + _range(tuple(_limits(limits)))


def _limits(metadata: tuple[Any, ...]) -> Iterator[Any]:
    for one in metadata:
        yield from one.metadata if isinstance(one, FieldInfo) else (one,)


def _range(limits: tuple[Any, ...]) -> str:
    low = next((f" from {one.ge}" for one in limits if isinstance(one, annotated_types.Ge)), "")
    low = next((f" above {one.gt}" for one in limits if isinstance(one, annotated_types.Gt)), low)
    high = next((f" to {one.le}" for one in limits if isinstance(one, annotated_types.Le)), "")
    high = next((f" and below {one.lt}" for one in limits if isinstance(one, annotated_types.Lt)), high)
    multiple = next((f", a multiple of {one.multiple_of}" for one in limits if hasattr(one, "multiple_of")), "")
    return low + (high or (" upwards" if low.startswith(" from") else "")) + multiple


class Documented(BaseModel):
    """A setting as shown on the settings page."""

    key: str
    values: str
    meaning: str


def documented(kind: type[BaseModel], prefix: str = "") -> Iterator[Documented]:
    """Every setting of a command, in order, with groups expanded."""
    for name, field in kind.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        group = _group(field.annotation)
        if group is None:
            yield Documented(key=key, values=expected(field), meaning=field.description or "")
        else:
            yield from documented(group, f"{key}.")
