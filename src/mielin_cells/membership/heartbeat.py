"""A node's heartbeat, on a thread with an event loop and a connection of its own.

It says that the process lives, however long a handler holds the main loop, and for how long that loop has not answered.
Every node hears the leader's; only those that watch hear all.  A heartbeat is a hint: nobody gains or loses an agent by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec

from mielin_cells.errors import CellError, RecordInvalid, never
from mielin_cells.log.codec import UNREADABLE
from mielin_cells.log.ids import BEATS, LEADER_BEATS
from mielin_cells.membership.watch import Ears
from mielin_cells.rpc.answers import Beat
from mielin_cells.settings import Settings
from mielin_cells.substrate.ports import Subscription, Substrate, Wire
from mielin_cells.tasks.supervision import supervised

logger = logging.getLogger("mielin_cells.heartbeat")

JOIN_S = 3.0
"""How long a stopping node waits for this thread: it may be in the middle of connecting."""

HEARD_MAX = 10_000
"""Nodes remembered, those that were heard last: garbage on the wire must not fill the memory, nor keep nodes from being heard."""

FORGET_S = 3600.0
"""A node that was not heard for so long is forgotten; the leader knows from the table of members that it is silent."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Beat)


def encode_beat(beat: Beat) -> bytes:
    return _encoder.encode(beat)


def decode_beat(data: bytes) -> Beat:
    """Raises `RecordInvalid`: the wire may carry anything."""
    try:
        return _decoder.decode(data)
    except UNREADABLE as error:
        raise RecordInvalid(f"A message on the heartbeat subject is not a heartbeat: {error}.") from error


class Listener:
    """Remembers when each node was last heard.  `receive` may run on another thread than `beats`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.ears = Ears()
        self.wants_all = False
        """The node watches: the heartbeats of all nodes are to be heard."""
        self._heard: dict[str, tuple[Beat, float]] = {}
        self._leader = ""
        """Who was last heard on the leader's subject."""
        self._has_complained = False

    def receive(self, data: bytes) -> None:
        try:
            beat = decode_beat(data)
        except RecordInvalid as error:
            if not self._has_complained:  # once: heartbeats come twice a second, and so may rubbish
                self._has_complained = True
                logger.warning("%s", error)
            return
        self._heard[beat.node] = beat, self.clock()
        if len(self._heard) > HEARD_MAX:
            heard = list(self._heard.items())
            del self._heard[min(heard, key=lambda item: item[1][1])[0]]

    def receive_leader(self, data: bytes) -> None:
        """As `receive`, of what came on the leader's own subject."""
        with contextlib.suppress(RecordInvalid):  # `receive` says so
            self._leader = decode_beat(data).node
        self.receive(data)

    def forget_others(self) -> None:
        """The other nodes are not listened to any more: a round of a node that does not watch costs the same with any number."""
        self._heard = {node: heard for node, heard in self._heard.items() if node == self._leader}

    def beats(self) -> list[Beat]:
        """The last heartbeat of each node, with its age."""
        now, beats = self.clock(), list[Beat]()
        for node, (beat, at) in list(self._heard.items()):
            if now - at > FORGET_S:
                self._heard.pop(node, None)
            else:
                beats.append(msgspec.structs.replace(beat, ago_s=now - at))
        return beats


class Speaker:
    """A node's heartbeats on one connection: what it sends, and what it hears there."""

    def __init__(self, wire: Wire, listener: Listener) -> None:
        self._wire = wire
        self._listener = listener
        self._leader: Subscription | None = None
        self._all: Subscription | None = None

    async def beat(self, beat: Beat, leads: bool) -> None:
        """Sends a heartbeat, after it has begun or ceased to listen to all others."""
        listener = self._listener
        if self._leader is None:
            self._leader = await self._wire.subscribe(LEADER_BEATS, listener.receive_leader)
            listener.ears.leader_since = listener.clock()
        if listener.wants_all and self._all is None:
            self._all = await self._wire.subscribe(BEATS, listener.receive)
            listener.ears.all_since = listener.clock()
        elif not listener.wants_all and self._all is not None:
            listener.ears.all_since = None
            self._all.close()
            self._all = None
            listener.forget_others()
        await self._wire.publish(LEADER_BEATS if leads else BEATS, encode_beat(beat))  # who watches listens to both

    def close(self) -> None:
        """It does not listen from here on: silence counts from the next connection."""
        self._listener.ears.all_since = self._listener.ears.leader_since = None
        for subscription in (self._leader, self._all):
            if subscription is not None:
                subscription.close()


class Heartbeat:
    """`start` on the node's main loop, then `stop`."""

    def __init__(
        self, node: str, connect: Callable[[], Awaitable[Substrate]], settings: Settings, listener: Listener,
        beat: Callable[[float], tuple[Beat, bool]],
    ) -> None:  # fmt: skip
        """`beat` makes a heartbeat of the node whose main loop has not answered for so long, and says whether the node leads."""
        self.listener = listener
        self.failures: Counter[str] = Counter()
        self._make_beat = beat
        self._node = node
        self._connect = connect
        self._settings = settings
        self._main = asyncio.get_running_loop()
        self._asked = 0.0
        """When the main loop was asked for the answer that is still out; 0: none is."""
        self._is_late = False
        self._ready = threading.Event()
        self._own: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{node}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        self._ready.wait(JOIN_S)
        if self._own is not None and self._ended is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: the thread has ended by itself
                self._own.call_soon_threadsafe(self._ended.set)
        await asyncio.to_thread(self._thread.join, JOIN_S)

    # ---- on the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        name = f"the heartbeat of node {self._node}"
        # Without it others take this node's agents over, so whatever fails is tried again.
        asyncio.run(supervised(name, self._live, failures=self.failures, cap_s=self._settings.heartbeat_s))

    async def _live(self) -> None:
        self._own, self._ended = asyncio.get_running_loop(), self._ended or asyncio.Event()
        self._ready.set()
        while not self._ended.is_set():
            try:
                substrate = await self._connect()
            except CellError as error:
                logger.warning("node %s has no heartbeat yet: %s", self._node, error)
                await self._rest()
                continue
            try:
                await self._beat(substrate)
            except CellError as error:
                logger.warning("node %s: the heartbeat is reconnected: %s", self._node, error)
                await self._rest()
            finally:
                with contextlib.suppress(CellError):
                    await substrate.close()

    async def _rest(self) -> None:
        if self._ended is None:
            raise never("self._ended is not None does not hold")
        with contextlib.suppress(TimeoutError):
            # Unlike `wait_for`, this makes no task for each heartbeat.
            async with asyncio.timeout(self._settings.heartbeat_s):
                await self._ended.wait()

    async def _beat(self, substrate: Substrate) -> None:
        if self._ended is None:
            raise never("self._ended is not None does not hold")
        speaker = Speaker(substrate.wire, self.listener)
        try:
            while not self._ended.is_set():
                await speaker.beat(*self._make_beat(self._stuck()))
                await self._rest()
        finally:
            speaker.close()

    def _stuck(self) -> float:
        """Asks the main loop for a sign, unless one is still out; for how long it has been."""
        now = time.monotonic()
        if self._asked:
            late = now - self._asked
            if late > self._settings.heartbeat_s * self._settings.heartbeat_misses and not self._is_late:
                self._is_late = True
                logger.warning(
                    "node %s: a handler or hook has blocked the event loop for %.1f s; nothing else runs meanwhile",
                    self._node, late,
                )  # fmt: skip
            return late
        self._asked = now
        with contextlib.suppress(RuntimeError):  # the main loop is closed: the process is about to end
            self._main.call_soon_threadsafe(self._signs)
        return 0.0

    def _signs(self) -> None:
        self._asked, self._is_late = 0.0, False
