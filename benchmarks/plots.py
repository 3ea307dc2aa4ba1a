"""The page's plots, as SVG: `python -m benchmarks.plots RESULTS FOLDER`, in the environment that has matplotlib.

What a part has not found is left out of its plot; a plot without anything is not drawn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "mielin", "svg.fonttype": "path", "font.size": 9, "axes.grid": True, "grid.alpha": 0.25,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "figure.figsize": (7.2, 3.6),
        "figure.constrained_layout.use": True,
    }
)  # fmt: skip
from matplotlib import pyplot as plt  # noqa: E402 - the backend is chosen before

COLOURS = {
    "always": "#1f5fa8", "lazy": "#4aa3df", "ours": "#1f5fa8", "floor": "#888888", "ray": "#c0392b", "xoscar": "#e08e0b",
    "paglets": "#7d3c98", "pykka": "#c0392b", "autogen-core": "#e08e0b", "bare": "#888888",
}  # fmt: skip
NAMES = {"always": "ours, synced", "lazy": "ours, lazy", "ray": "Ray", "pykka": "Pykka", "bare": "only encoded"}
SYNCS = ("always", "lazy")
PEERS = ("paglets", "xoscar", "ray")
Figures = dict[str, Any]


def named(key: str) -> str:
    return NAMES.get(key, key)


def _band(axes: Any, xs: list[int], spreads: list[Figures], colour: str, label: str) -> None:
    """Medians, with the quartiles as bars."""
    middle = [one["p50"] for one in spreads]
    low = [max(0.0, one["p50"] - one["p25"]) for one in spreads]
    high = [max(0.0, one["p75"] - one["p50"]) for one in spreads]
    axes.errorbar(xs, middle, yerr=[low, high], marker="o", ms=4, lw=1.4, capsize=2, color=colour, label=label)


def pause_size(parts: Figures) -> Any:
    figures = parts["sizes"]
    figure, axes = plt.subplots()
    for sync in SYNCS:
        if sync not in figures:
            continue
        sizes = figures[sync]["sizes"]
        _band(axes, [int(s) for s in sizes], [one["pause_ms"] for one in sizes.values()], COLOURS[sync], named(sync))
        axes.axhline(
            figures[sync]["floor_ms"]["p50"], ls="--", lw=1, color=COLOURS[sync], alpha=0.6, label=f"its floor ({sync})"
        )
    for peer in PEERS:
        if peer in figures:
            _band(axes, [int(s) for s in figures[peer]], list(figures[peer].values()), COLOURS[peer], named(peer))
    axes.set(xscale="log", yscale="log", xlabel="state, bytes", ylabel="ms in which nobody answers")
    axes.set_title("A move: pause against the size of the state")
    axes.legend(fontsize=7, ncols=2)
    return figure


def _ecdf(axes: Any, values: list[float], **how: Any) -> None:
    axes.step(values, [(n + 1) / len(values) for n in range(len(values))], where="post", lw=1.4, **how)


def pause_ecdf(parts: Figures) -> Any:
    figure, (left, right) = plt.subplots(1, 2)
    for sync in SYNCS:
        if sync in parts["pause"]:
            _ecdf(left, parts["pause"][sync]["pauses"], color=COLOURS[sync], label=named(sync))
            _ecdf(left, parts["pause"][sync]["floors"], color=COLOURS[sync], ls=":", label=f"its floor ({sync})")
    for key in (*SYNCS, *PEERS):
        if key in parts.get("away", {}):
            _ecdf(right, parts["away"][key]["waits"], color=COLOURS[key], label=named(key))
    left.set(xscale="log", xlabel="ms", ylabel="share of moves", title="Pause, 1 KiB, 1,000 messages/s")
    right.set(xscale="log", xlabel="ms", title="Longest wait of a client in a move, 1 MiB")
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    return figure


def asks(parts: Figures) -> Any:
    figures, local = parts["asks"], parts.get("inprocess", {})
    figure, (rates, inside, latency) = plt.subplots(1, 3, width_ratios=(5, 3, 5))
    bars, delays = list[tuple[str, float, str]](), list[tuple[str, Figures, str]]()
    for sync in SYNCS:
        if sync in figures:
            one = figures[sync]
            bars += [(named(sync), _middle(one["asks_per_s"]), COLOURS[sync])]
            bars += [(f"floor, {sync}", _middle(one["floor_per_s"]), COLOURS["floor"])]
            delays += [
                (named(sync), one["ask_ms"], COLOURS[sync]),
                (f"floor, {sync}", one["floor_ms"], COLOURS["floor"]),
            ]
    for peer in ("ray", "xoscar"):
        if peer in figures:
            one = figures[peer]
            bars.append((f"{named(peer)}, keeps nothing", _middle(one["asks_per_s"][one["way"]]), COLOURS[peer]))
            delays.append((named(peer), one["ask_ms"], COLOURS[peer]))
    _bars(rates, bars, "asks per second, between processes")
    _bars(
        inside,
        [(named(name), _middle(one["asks_per_s"]), COLOURS[name]) for name, one in local.items()],
        "in one process",
    )
    for place, (name, one, colour) in enumerate(reversed(delays)):
        latency.plot([one["p50"], one["p99"]], [place, place], color=colour, lw=2)
        latency.plot([one["p50"]], [place], "o", color=colour)
        latency.annotate(name, (one["p50"], place), xytext=(0, 5), textcoords="offset points", fontsize=7)
    latency.set(xscale="log", xlabel="ms, p50 to p99", yticks=[], title="one after another")
    latency.set_ylim(-0.5, len(delays) - 0.3)
    return figure


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _bars(axes: Any, bars: list[tuple[str, float, str]], title: str) -> None:
    for place, (_, value, colour) in enumerate(bars):
        axes.bar(place, value, color=colour)
        axes.annotate(
            f"{value:,.0f}",
            (place, value),
            ha="center",
            va="bottom",
            fontsize=6,
            xytext=(0, 1),
            textcoords="offset points",
        )
    axes.set_xticks(range(len(bars)), [name for name, _, _ in bars], rotation=40, ha="right", fontsize=7)
    axes.set_title(title, fontsize=9)
    axes.grid(visible=False, axis="x")


def turn_size(parts: Figures) -> Any:
    figures = parts["turns"]
    figure, axes = plt.subplots()
    _band(
        axes,
        [int(size) for size in figures],
        list(figures.values()),
        COLOURS["ours"],
        "a turn that changes one row of 1 KiB",
    )
    axes.set(
        xscale="log", ylim=(0, None), xlabel="state, bytes", ylabel="µs", title="A turn against the size of the state"
    )
    axes.axhline(
        2 * next(iter(figures.values()))["p50"], ls="--", lw=1, color=COLOURS["floor"], label="twice that of 1 KiB"
    )
    axes.legend(fontsize=7)
    return figure


def migrations(parts: Figures) -> Any:
    figures = parts["drain"]
    figure, axes = plt.subplots()
    wanted = {"always": 150, "lazy": 300}
    bars = [(f"{named(sync)}, {figures[sync]['agents']:,} agents", _middle(figures[sync]["per_s"]), COLOURS[sync])
            for sync in SYNCS if sync in figures]  # fmt: skip
    _bars(axes, bars, "Migrations per second when a node is drained")
    for place, sync in enumerate(sync for sync in SYNCS if sync in figures):
        axes.plot(
            [place - 0.4, place + 0.4],
            [wanted[sync]] * 2,
            ls="--",
            color="black",
            lw=1,
            label=f"wanted: {wanted[sync]}",
        )
    axes.tick_params(axis="x", rotation=0)
    axes.legend(fontsize=7)
    return figure


def failover(parts: Figures) -> Any:
    figure, axes = plt.subplots()
    for sync in SYNCS:
        series = parts["failover"].get(sync)
        if not series:
            continue
        counts = [one["agents"] for one in series]
        axes.plot(
            counts,
            [one["seconds"] for one in series],
            "o-",
            ms=4,
            color=COLOURS[sync],
            label=f"{named(sync)}, from the kill",
        )
        axes.plot(
            counts,
            [one["detection_s"] for one in series],
            ls="-.",
            lw=1,
            color=COLOURS[sync],
            label=f"of it detection ({sync})",
        )
        axes.plot(
            counts,
            [one["floor_s"] for one in series],
            ls=":",
            lw=1.4,
            color=COLOURS[sync],
            label=f"bare takeover ({sync})",
        )
    axes.set(
        xlabel="agents on the killed node",
        ylabel="s",
        ylim=(0, None),
        title="Failover: until the last agent has answered",
    )
    axes.legend(fontsize=7, ncols=2)
    return figure


def memory(parts: Figures) -> Any:
    series = parts["idle"]["idle"]
    figure, (left, right) = plt.subplots(1, 2)
    counts = [one["agents"] for one in series]
    left.plot(counts, [one["kib_each"] for one in series], "o-", ms=4, color=COLOURS["ours"])
    left.axhline(10, ls="--", lw=1, color=COLOURS["floor"], label="wanted: at most 10 KiB")
    left.set(
        xscale="log",
        ylim=(0, None),
        xlabel="idle agents on one node",
        ylabel="KiB of the node for each",
        title="Memory per agent",
    )
    right.plot(counts, [one["per_s"] for one in series], "o-", ms=4, color=COLOURS["lazy"])
    right.axhline(2000, ls="--", lw=1, color=COLOURS["floor"], label="wanted: at least 2,000/s")
    right.set(
        xscale="log",
        ylim=(0, None),
        xlabel="idle agents on one node",
        ylabel="agents created per second",
        title="Creation, lazy",
    )
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    return figure


def queue(parts: Figures) -> Any:
    figures = parts["manager"]
    figure, axes = plt.subplots()
    pending = [int(number) for number in figures]
    for key, label, colour in (
        ("insert_us", "one failure recorded", COLOURS["always"]), ("due_us", "one due found, begun and finished", COLOURS["ray"]),
        ("none_due_us", "none is due", COLOURS["floor"]),
    ):  # fmt: skip
        _band(axes, pending, [one[key] for one in figures.values()], colour, label)
    axes.set(
        xscale="log", ylim=(0, None), xlabel="failed migrations that wait", ylabel="µs", title="The recovery queue"
    )
    axes.legend(fontsize=7)
    return figure


PLOTS: dict[str, tuple[str, Callable[[Figures], Any]]] = {
    "pause-size": ("sizes", pause_size),
    "pause-ecdf": ("pause", pause_ecdf),
    "asks": ("asks", asks),
    "turn-size": ("turns", turn_size),
    "migrations": ("drain", migrations),
    "failover": ("failover", failover),
    "memory": ("idle", memory),
    "queue": ("manager", queue),
}


def main() -> None:
    results, folder = Path(sys.argv[1]), Path(sys.argv[2])
    parts = {
        name: part["figures"] for name, part in json.loads(results.read_text())["parts"].items() if part["figures"]
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (part, draw) in PLOTS.items():
        path = folder / f"{name}.svg"
        path.unlink(missing_ok=True)
        if part not in parts:
            continue
        figure = draw(parts)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
        # matplotlib ends lines of paths with spaces, which `git diff --check` would complain of.
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
        print(path)


if __name__ == "__main__":
    main()
