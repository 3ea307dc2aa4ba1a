"""The bases of all exceptions, their way over the wire, and how exceptions of others are described."""

from __future__ import annotations

from typing import Any

TEXT_CHARS_MAX = 4_000
"""Of a text that an error brings into a record or message: enough for any sentence, and no user's exception fills a log."""


class CellError(Exception):
    """Base of all exceptions of this package.  `code` is stable; `facts` are its machine-readable details.

    Next: read the sentence that it carries. A code that this version does not know comes from a newer node as a plain
    `CellError`.
    """

    retry_after: float | None = None

    def __init__(self, message: str, /, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    @property
    def code(self) -> str:
        return type(self).__name__

    def __getattr__(self, name: str) -> Any:
        facts = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.facts)

    def to_wire(self) -> tuple[str, str, dict[str, Any]]:
        """Code, sentence and those facts that are plain data: what this gives can be encoded, whatever a user put in."""
        plain = {storable(name): _plain(value) for name, value in self.facts.items() if isinstance(value, _PLAIN)}
        return storable(self.code), storable(str(self.message)), plain


_PLAIN = (str, int, float, bool, list, tuple, type(None))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [storable(str(_plain(item))) for item in value if isinstance(item, (str, int, float))]
    if isinstance(value, str):
        return storable(str(value))
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value) if -(2**63) <= value < 2**64 else storable(f"{value:#x}")  # integers beyond do not encode
    return value


def storable(text: str) -> str:
    """The text as it can be encoded and kept: without lone surrogates, and cut where it is too long."""
    if len(text) > TEXT_CHARS_MAX:
        text = text[:TEXT_CHARS_MAX] + "..."
    return text.encode(errors="replace").decode()


def never(what: str) -> AssertionError:
    """For a state that only a bug of this package leads to.  Raised, and not asserted: `python -O` removes asserts."""
    return AssertionError(f"This cannot be, and is a bug of mielin-cells: {what}. Please report it.")


def described(error: BaseException) -> str:
    """Kind and text of any exception, storable; of a group, also those of the exceptions in it.

    Never raises: users' exceptions may have a `__str__` that does.
    """
    try:
        text = "".join(str(error))  # a plain one: it may be of a user's class as well
    except Exception as broken:  # noqa: BLE001 - whatever it is, it must not hide the error that is described
        text = f"its text cannot be read ({type(broken).__name__})"
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, BaseExceptionGroup):
        said = f"{said}: {'; '.join(described(one) for one in leaves(error))}"
    return storable(said)


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions that a group holds, and those of the groups in it; of another exception, itself."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for one in error.exceptions for leaf in leaves(one)]


def _rebuild(cls: type[CellError], message: str, facts: dict[str, Any]) -> CellError:
    error = cls.__new__(cls)
    CellError.__init__(error, message, **facts)  # a user's derived class may have an `__init__` of its own
    return error


def classes() -> list[type[CellError]]:
    """`CellError` and all classes derived from it, users' too."""
    known: list[type[CellError]] = [CellError]
    for cls in known:
        known.extend(cls.__subclasses__())
    return known


def is_ours(cls: type) -> bool:
    """True for a class of this package, which no class of a user's is even if it has the same name."""
    return cls.__module__ == CellError.__module__


def from_wire(code: str, message: str, facts: dict[str, Any]) -> CellError:
    """The exception that `to_wire` described.  An unknown code (a newer peer) becomes a plain `CellError`."""
    named = [cls for cls in classes() if cls.__name__ == code]
    return _rebuild(next(filter(is_ours, named), named[0] if named else CellError), message, facts)


class UsageError(CellError):
    """Yours: fix the call, the class or the setting.

    Next: fix the call, the class or the setting. The same call fails again.
    """


class RetryError(CellError):
    """Retry: a passing condition; the same call may succeed after `retry_after` seconds.

    Next: make the same call again after `retry_after` seconds.
    """

    retry_after: float | None = 1.0


class LostError(CellError):
    """Lost: ownership moved, or what is stored cannot be used.  Nothing was changed by this call.

    Next: look at the agent with `mielin show AGENT` and at the store with `mielin doctor`, before anything is tried again.
    """


class AlreadySpawned(UserWarning):
    """A spawn named an agent that exists and gave it another initial state, which is not used."""


class InternalError(CellError):
    """A bug in this package: please report it with the sentence it carries.

    Next: report it, with its sentence and the log of the node. Agents go on from their logs.
    """


class MigrationError(CellError):
    """Base of what an order to move an agent raises: `except cells.MigrationError` catches each of them.

    Next: read which error it is; `mielin migrations --agent AGENT` lists the agent's moves.
    """
