"""Pydantic models as stored values: by the names of their fields, whatever aliases, exclusions and serializers say.

A model is kept as a map of what its fields hold.  Fields that were filled by their defaults are named beside them, so that
`model_dump(exclude_unset=True)` gives the same after a load.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any

UNSET = "\0unset"
"""Key in a stored model for the names of the fields that were not set."""


def is_model(kind: type) -> bool:
    return hasattr(kind, "model_validate")


@functools.lru_cache(maxsize=1024)
def _options(kind: Any) -> dict[str, Any]:
    """Options of `model_validate` for stored data: fields by name, and conversions allowed, since the data was valid when stored."""
    names = inspect.signature(kind.model_validate).parameters
    return {name: value for name, value in (("by_alias", False), ("by_name", True), ("strict", False)) if name in names}


def stored(model: Any) -> Any:
    """A model as plain data.  Parts that msgspec cannot encode come back to the encoder's hook."""
    fields = getattr(type(model), "__pydantic_fields__", None)
    if fields is None:  # something that only looks like a model
        return model.model_dump(mode="json")
    values = model.__dict__
    if getattr(type(model), "__pydantic_root_model__", False):
        return values["root"]
    plain = {name: values[name] for name in fields if name in values}
    plain.update(model.__pydantic_extra__ or {})
    given = model.__pydantic_fields_set__
    if len(given) < len(plain):
        unset = [name for name in plain if name not in given]
        if unset:
            plain[UNSET] = unset
    return plain


def unknown(value: Any) -> Any:
    """A value inside a model that msgspec does not know, such as a path or a URL, as pydantic would write it."""
    core = sys.modules.get("pydantic_core")
    name = type(value).__name__
    if core is None:
        raise NotImplementedError(f"a {name} cannot be stored")
    if hasattr(value, "get_secret_value"):
        raise NotImplementedError(
            f"a {name} is not written to a log in the clear; keep a name of the secret, and fetch it in `on_arrive`"
        )
    try:
        return core.to_jsonable_python(value)
    except Exception as error:  # of a user's serializer: anything
        raise NotImplementedError(f"a {name} cannot be stored") from error


def loaded(kind: Any, value: Any) -> Any:
    """The model that was stored as this value."""
    if not hasattr(kind, "__pydantic_fields__"):
        return kind.model_validate(value)
    unset: dict[int, list[str]] = {}
    _take_unset(value, unset)
    model = kind.model_validate(value, **_options(kind))
    if unset:
        _give_unset(model, value, unset)
    return model


def reads_other_data(kind: Any) -> bool:
    """The model has validators that see data before its fields do, so it handles data of another version itself."""
    decorators = getattr(kind, "__pydantic_decorators__", None)
    validators = decorators.model_validators.values() if decorators is not None else ()
    return any(validator.info.mode in ("before", "wrap") for validator in validators)


def written(kind: Any, value: Any) -> Any:
    """The model that a person has written as plain data, by aliases or by names."""
    options = _options(kind) if hasattr(kind, "__pydantic_fields__") else {}
    return kind.model_validate(value, **{name: True for name in ("by_alias", "by_name") if name in options})


def readable(value: Any) -> Any:
    """Plain data for people, without the names of unset fields."""
    _take_unset(value, {})
    return value


def _take_unset(value: Any, unset: dict[int, list[str]]) -> None:
    if type(value) is dict:
        names = value.pop(UNSET, None)
        if names is not None:
            unset[id(value)] = names
        for item in value.values():
            _take_unset(item, unset)
    elif type(value) is list:
        for item in value:
            _take_unset(item, unset)


def _give_unset(made: Any, value: Any, unset: dict[int, list[str]]) -> None:
    """Walks a loaded value beside its stored data, and marks its unset fields."""
    if hasattr(made, "__pydantic_fields_set__"):
        if getattr(type(made), "__pydantic_root_model__", False):
            _give_unset(made.root, value, unset)
        elif type(value) is dict:
            made.__pydantic_fields_set__.difference_update(unset.get(id(value), ()))
            for name, item in value.items():
                _give_unset(made.__dict__.get(name), item, unset)
    elif isinstance(made, dict) and type(value) is dict:
        for one, item in zip(made.values(), value.values(), strict=False):
            _give_unset(one, item, unset)
    elif isinstance(made, (list, tuple)) and type(value) is list:
        for one, item in zip(made, value, strict=False):
            _give_unset(one, item, unset)
