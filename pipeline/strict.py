"""JSON and TOML values into the dataclasses that they stand for: every key known, every type as it is declared."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def build(kind: type[T], values: object, *, name: str = "") -> T:
    """An instance of a dataclass from the values of its fields; those that are missing take their defaults.

    Args:
        kind: a dataclass whose fields are plain values, enums, tuples and mappings of them, or dataclasses like it.
        values: as a parser of JSON or TOML gives them.
        name: of the value in its file, for messages.

    Raises:
        ValueError: a key is unknown or missing, a value has another type, or the dataclass refuses it.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{name or 'the job'} is {values!r}: expected settings by name")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # it is a dataclass
    unknown = sorted(str(key) for key in values if key not in fields)
    if unknown:
        expected = ", ".join(fields)
        raise ValueError(f"unknown setting {_inside(name, unknown[0])!r}: expected one of {expected}")
    needed = [
        field.name
        for field in fields.values()
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and field.name not in values
    ]
    if needed:
        raise ValueError(f"the setting {_inside(name, needed[0])!r} is missing")
    hints = get_type_hints(kind)
    return kind(**{key: _value(hints[key], value, _inside(name, key)) for key, value in values.items()})


def _value(hint: Any, value: object, name: str) -> object:  # Any: a type, or an expression of types
    kind = get_origin(hint) or hint
    if kind in (types.UnionType, Union):
        return _first_of(get_args(hint), value, name)
    if kind is tuple:
        return _tuple(get_args(hint)[0], value, name)
    if kind is Mapping:
        return _mapping(get_args(hint)[1], value, name)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, name=name)  # type: ignore[arg-type]  # a type, and no instance
    if kind is Literal or issubclass(kind, Enum):
        expected = get_args(hint) if kind is Literal else tuple(each.value for each in kind)
        if value not in expected:
            raise ValueError(f"{name} is {value!r}: expected {' or '.join(map(str, expected))}")
        return value if kind is Literal else kind(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # a bool is an int to isinstance, and never meant as one
        raise ValueError(f"{name} is {value!r}: expected {_WORDS.get(kind, kind.__name__)}")
    return value


def _tuple(kind: Any, value: object, name: str) -> tuple[object, ...]:  # Any: the one type of its values
    if not isinstance(value, list):
        raise ValueError(f"{name} is {value!r}: expected a list")
    return tuple(_value(kind, each, f"{name}[{number}]") for number, each in enumerate(value))


def _mapping(kind: Any, value: object, name: str) -> Mapping[str, object]:  # Any: the one type of its values
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}: expected values by name")
    return {str(key): _value(kind, each, _inside(name, str(key))) for key, each in value.items()}


def _first_of(kinds: Sequence[Any], value: object, name: str) -> object:  # Any: types
    reasons = []
    for kind in kinds:
        try:
            return _value(kind, value, name)
        except ValueError as error:
            reasons.append(error)
    raise reasons[0]


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "nothing"}


def _inside(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
