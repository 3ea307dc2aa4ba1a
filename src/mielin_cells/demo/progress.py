"""The demo's progress."""

from __future__ import annotations

import asyncio
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mielin_cells.demo.job import Job


class Display:
    """Progress in real units on stderr: live lines on a terminal, else a plain one every few seconds and every tenth."""

    PLAIN_S = 5.0
    TICK_S = 0.1

    def __init__(self, job: Job, agents: int) -> None:
        self._job = job
        self._live = sys.stderr.isatty()
        columns = (
            TextColumn("{task.description:<7}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        console = Console(stderr=True)
        self._bars = Progress(*columns, console=console, auto_refresh=False, disable=not self._live)
        self._agents = self._bars.add_task("agents", total=agents, note="")
        self._events = self._bars.add_task("events", total=len(job.flights.events), note="")
        self._moves = self._bars.add_task("moves", total=job.migrations, note="")
        self._written, self._tenth = time.monotonic(), 0

    def __enter__(self) -> Display:
        self._bars.start()
        self._plain(
            f"{len(self._job.flights.events)} events, {self._job.nodes} nodes, {self._job.migrations} migrations"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._show()
        self._bars.stop()

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(self.TICK_S)
            self._show()

    def _show(self) -> None:
        job, total, now = self._job, len(self._job.flights.events), time.monotonic()
        agents = len(job.planes) + len(job.airports)
        done = job.done + job.already
        rate = f"{job.done / (now - job.flowing_at):.0f} events/s" if job.flowing_at and job.done else ""
        pause = f"last pause {job.reports[-1].pause_ms:.2f} ms" if job.reports else ""
        if self._live:
            self._bars.update(self._agents, completed=agents)
            self._bars.update(self._events, completed=done, note=rate)
            self._bars.update(self._moves, completed=len(job.reports), note=pause)
            self._bars.refresh()
            return
        tenth = done * 10 // total
        if tenth > self._tenth or now - self._written >= self.PLAIN_S:
            self._written, self._tenth = now, tenth
            parts = [f"{agents} agents", f"{done}/{total} events", f"{len(job.reports)}/{job.migrations} moves"]
            self._plain(", ".join(part for part in (*parts, rate, pause) if part))

    def _plain(self, text: str) -> None:
        if not self._live:
            print(text, file=sys.stderr, flush=True)
