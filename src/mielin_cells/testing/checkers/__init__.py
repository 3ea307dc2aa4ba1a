"""The invariants I1 to I48 of `docs/reliability.md`, one checker each."""

from mielin_cells.testing.checkers import messages as m
from mielin_cells.testing.checkers import migrations as g
from mielin_cells.testing.checkers import ownership as o
from mielin_cells.testing.checkers.attributes import AttributesFollow
from mielin_cells.testing.checkers.checker import Checker
from mielin_cells.testing.checkers.deploys.agreed import DeploysAgree
from mielin_cells.testing.checkers.failed_turns import NothingOfIt
from mielin_cells.testing.checkers.families import MadeOnce, ToldOnce, WithinIntensity
from mielin_cells.testing.checkers.lines.cancels import CancelsHold
from mielin_cells.testing.checkers.lines.priorities import PrioritiesInOrder
from mielin_cells.testing.checkers.members import MembersAgree
from mielin_cells.testing.checkers.outside.once import OutsideOnce
from mielin_cells.testing.checkers.plans.followed import PlansAreFollowed
from mielin_cells.testing.checkers.plans.limits import LimitsHold
from mielin_cells.testing.checkers.plans.requirements import RequirementsHold
from mielin_cells.testing.checkers.plans.resting import NoPingPong
from mielin_cells.testing.checkers.reads import ReadsCommitted
from mielin_cells.testing.checkers.streams import StreamsWhole
from mielin_cells.testing.checkers.teams.crons import CronOnce
from mielin_cells.testing.checkers.teams.orders import OrdersCarriedOut, ToldOncePerMember
from mielin_cells.testing.checkers.teams.services import ServedOnce
from mielin_cells.testing.checkers.teams.traces import TracesGoOn
from mielin_cells.testing.checkers.terms import InTime, OnceByKey
from mielin_cells.testing.checkers.till import Till
from mielin_cells.testing.checkers.topics import TopicsOnce
from mielin_cells.testing.checkers.waits.outcomes import WaitsStand

OF_LOGS: tuple[type[Checker], ...] = (
    o.SameState, o.OneServes, o.EpochsGrow, o.CurrentWrites, m.TakenOnce, m.SentOnce, m.AcknowledgedIsKept, m.InOrder, g.OneOutcome,
    o.GoesBackByRecord, o.NobodyRuns, g.RecoveredOnce, g.ValidPath, o.OwnerRegister, g.Classified, m.Conserved, o.StoreTells,
)  # fmt: skip
"""Checkers that need only the stored entries and the clients' records, so that they can check real processes too."""

CHECKERS: tuple[type[Checker], ...] = (
    *OF_LOGS, g.ComesToRest, g.WithinBudget, m.TimersOnce, Till, g.NothingLeft, o.NothingUnverified, g.SameAgain, NothingOfIt,
    ReadsCommitted, InTime, OnceByKey, MembersAgree, TopicsOnce, StreamsWhole,
    PrioritiesInOrder, MadeOnce, ToldOnce, WithinIntensity, AttributesFollow, CancelsHold, WaitsStand,
    ServedOnce, ToldOncePerMember, OrdersCarriedOut, CronOnce, TracesGoOn, OutsideOnce,
    RequirementsHold, LimitsHold, NoPingPong, PlansAreFollowed, DeploysAgree,
)  # fmt: skip
"""All.  `SameState` is the first: it folds the logs that others look at."""
