"""Annotations of classes and functions, also where Python reads them only when they are asked for (3.14)."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, ForwardRef, TypeVar

from mielin_cells.errors import FieldRefused

try:
    import annotationlib  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # before 3.14: they were read when the class or function was defined
    annotationlib = None


def annotations_of(holder: Any) -> dict[str, Any]:
    """Annotations by name.  One that names something undefined is given as its text."""
    if annotationlib is None:
        return inspect.get_annotations(holder)
    annotations = annotationlib.get_annotations(holder, format=annotationlib.Format.FORWARDREF)
    return {name: _text(kind) if isinstance(kind, ForwardRef) else kind for name, kind in annotations.items()}


def _text(unknown: ForwardRef) -> str:
    return unknown.__forward_arg__


def resolved(written: dict[str, Any], names: dict[str, Any], path: str) -> dict[str, Any]:
    """The types that annotations stand for.  Raises `FieldRefused` for an annotation that names something undefined."""
    try:
        return typing.get_type_hints(
            types.SimpleNamespace(__annotations__=written), globalns=names, include_extras=True
        )
    except Exception as error:  # an annotation is an expression of the user's, and may raise anything
        what = "; import or define it in the module, outside of `if TYPE_CHECKING:` and of functions"
        raise FieldRefused.at(
            path, f": an annotation cannot be resolved: {error}{what if isinstance(error, NameError) else ''}."
        ) from error


def read_signature(fn: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function, even if its annotations name something undefined."""
    if "annotation_format" not in (inspect.signature.__kwdefaults__ or {}):
        return inspect.signature(fn)
    how: Any = inspect.signature
    signature: inspect.Signature = how(fn, annotation_format=annotationlib.Format.FORWARDREF)
    return signature


def given_types(cls: type) -> dict[type, dict[Any, Any]]:
    """For each base of a class, the types that are given for its type variables, as in `class Name(Box[int])`."""
    given: dict[type, dict[Any, Any]] = {}
    for base in cls.__mro__:  # a base comes after the classes that give it types
        for written in vars(base).get("__orig_bases__", ()):
            origin = typing.get_origin(written)
            if isinstance(origin, type) and origin is not typing.Generic:
                kinds = [_filled(kind, given.get(base, {})) for kind in typing.get_args(written)]
                given.setdefault(origin, dict(zip(getattr(origin, "__parameters__", ()), kinds, strict=False)))
    return given


def filled(hints: dict[str, Any], given: dict[Any, Any] | None) -> dict[str, Any]:
    """Annotations with the types that are given for their variables."""
    return {name: _filled(kind, given) for name, kind in hints.items()} if given else hints


def _filled(kind: Any, given: dict[Any, Any]) -> Any:
    if isinstance(kind, TypeVar):
        return given.get(kind, kind)
    variables = () if isinstance(kind, type) else getattr(kind, "__parameters__", ())
    return kind[tuple(given.get(variable, variable) for variable in variables)] if variables else kind
