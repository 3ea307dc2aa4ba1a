"""Annotations of classes and functions, also where Python reads them only when they are asked for (3.14)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ForwardRef

try:
    import annotationlib  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # before 3.14: they were read when the class or function was defined
    annotationlib = None


def annotations_of(holder: Any) -> dict[str, Any]:
    """By name.  One that names what is not defined yet is its text."""
    if annotationlib is None:
        return inspect.get_annotations(holder)
    found = annotationlib.get_annotations(holder, format=annotationlib.Format.FORWARDREF)
    return {name: _text(kind) if isinstance(kind, ForwardRef) else kind for name, kind in found.items()}


def _text(unknown: ForwardRef) -> str:
    return unknown.__forward_arg__


def read_signature(fn: Callable[..., Any]) -> inspect.Signature:
    """Its parameters and their kinds, whatever its annotations name."""
    if "annotation_format" not in (inspect.signature.__kwdefaults__ or {}):
        return inspect.signature(fn)
    how: Any = inspect.signature
    found: inspect.Signature = how(fn, annotation_format=annotationlib.Format.FORWARDREF)
    return found
