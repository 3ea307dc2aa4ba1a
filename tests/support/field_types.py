"""Types of state fields, agents that have them, and their stored state, for tests."""

import datetime as dt
import enum
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NewType, TypedDict

import msgspec
import pydantic

import mielin_cells as cells
from mielin_cells.agents.spec import Spec
from mielin_cells.log.state import StoredState


class Peer(cells.Agent):
    count: int = 0


class OtherPeer(cells.Agent):
    pass


def agent_with(kind: Any, name: str = "Holder") -> Any:
    return type(name, (cells.Agent,), {"__annotations__": {"x": kind}})


def stored(spec: Spec, **state: Any) -> StoredState:
    made = StoredState()
    made.apply(spec.initial(**state))
    return made


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: float = 0.5


class Options(TypedDict, total=False):
    depth: int
    names: list[str]


class Leg(msgspec.Struct):
    to: str
    miles: int = 0


@dataclass
class Trip:
    legs: list[Leg]
    by: Colour = Colour.RED
    notes: dict[str, set[int]] = field(default_factory=dict)


class Tagged(msgspec.Struct, tag="tagged"):
    a: int


class Labelled(msgspec.Struct, tag="labelled"):
    b: str


class Person(pydantic.BaseModel):
    name: str
    age: int = pydantic.Field(ge=0)
    born: dt.date | None = None
    boss: "Person | None" = None


class Tree(msgspec.Struct):
    children: list["Tree"] = []


UserId = NewType("UserId", str)
Json = dict[str, "Json"] | int
UTC_NOON = dt.datetime(2013, 1, 31, 12, tzinfo=dt.UTC)
ANN = Person(name="Ann", age=5, born=dt.date(2013, 1, 1), boss=Person(name="Bob", age=50))
