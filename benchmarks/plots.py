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
        "svg.hashsalt": "mielin", "svg.fonttype": "path", "font.size": 9, "axes.grid": True,
        "axes.axisbelow": True, "grid.alpha": 0.25,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "figure.figsize": (7.2, 3.6),
        "figure.constrained_layout.use": True,
    }
)  # fmt: skip
from matplotlib import pyplot as plt  # noqa: E402 - the backend is chosen before
from matplotlib import ticker  # noqa: E402

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


def _log_ms(axes: Any, label: str = "ms") -> None:
    """A logarithmic axis whose ticks are few and plain numbers: the ones by default overlap where it spans less than two decades."""
    axes.set(xscale="log", xlabel=label)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0,) if high / low > 200 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


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
    left.set(ylabel="share of moves", title="Pause, 1 KiB, 1,000 messages/s")
    right.set_title("Longest wait of a client in a move, 1 MiB")
    for axes in (left, right):
        _log_ms(axes)
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    return figure


def asks(parts: Figures) -> Any:
    figures, local = parts["asks"], parts.get("inprocess", {})
    figure, panels = plt.subplot_mosaic(
        [["rates", "delays"], ["inside", "delays"]], figsize=(7.2, 4.4), height_ratios=(7, 4), width_ratios=(3, 2)
    )
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
    _bars(panels["rates"], bars, "Asks per second, between processes")
    inside = [(named(name), _middle(one["asks_per_s"]), COLOURS[name]) for name, one in local.items()]
    _bars(panels["inside"], inside, "Asks per second, in one process")
    latency = panels["delays"]
    for place, (_, one, colour) in enumerate(delays):
        latency.plot([one["p50"], one["p99"]], [place, place], color=colour, lw=2)
        latency.plot([one["p50"]], [place], "o", color=colour)
    _name_rows(latency, [name for name, _, _ in delays])
    _log_ms(latency, "ms, p50 to p99")
    latency.set_title("One ask after another", fontsize=9)
    return figure


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _name_rows(axes: Any, names: list[str]) -> None:
    """Names on the left of the rows, the first one on top."""
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _bars(axes: Any, bars: list[tuple[str, float, str]], title: str) -> None:
    """Bars from left to right, so that long names fit beside them."""
    for place, (_, value, colour) in enumerate(bars):
        axes.barh(place, value, color=colour)
        axes.annotate(
            f"{value:,.0f}", (value, place), va="center", fontsize=7, xytext=(3, 0), textcoords="offset points"
        )
    _name_rows(axes, [name for name, _, _ in bars])
    axes.set_xlim(0, 1.15 * max((value for _, value, _ in bars), default=1.0))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(4))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title(title, fontsize=9)


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
    figure, axes = plt.subplots(figsize=(7.2, 2.2))
    wanted = {"always": 150, "lazy": 300}
    syncs = [sync for sync in SYNCS if sync in figures]
    bars = [
        (f"{named(one)}, {figures[one]['agents']:,} agents", _middle(figures[one]["per_s"]), COLOURS[one])
        for one in syncs
    ]
    _bars(axes, bars, "Migrations per second when a node is drained")
    for place, sync in enumerate(syncs):
        axes.plot(
            [wanted[sync]] * 2,
            [place - 0.4, place + 0.4],
            ls="--",
            color="black",
            lw=1,
            label=f"wanted: {wanted[sync]}",
        )
    axes.legend(fontsize=7)
    return figure


def failover(parts: Figures) -> Any:
    figure, axes = plt.subplots()
    for sync in SYNCS:
        series = parts["failover"].get(sync)
        if not series:
            continue
        for key, label, style in (
            ("seconds", f"{named(sync)}, from the kill", {"marker": "o", "ms": 4}),
            ("detection_s", f"of it detection ({sync})", {"ls": "-.", "lw": 1}),
            ("floor_s", f"bare takeover ({sync})", {"ls": ":", "lw": 1.4}),
        ):
            axes.plot(
                [one["agents"] for one in series],
                [one[key] for one in series],
                color=COLOURS[sync],
                label=label,
                **style,
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
    figure, panels = plt.subplots(1, 2)
    for axes, key, colour, wanted, label, ylabel, title in (
        (panels[0], "kib_each", "ours", 10, "wanted: at most 10 KiB", "KiB of the node for each", "Memory per agent"),
        (panels[1], "per_s", "lazy", 2000, "wanted: at least 2,000/s", "agents created per second", "Creation, lazy"),
    ):
        axes.plot([one["agents"] for one in series], [one[key] for one in series], "o-", ms=4, color=COLOURS[colour])
        axes.axhline(wanted, ls="--", lw=1, color=COLOURS["floor"], label=label)
        axes.set(
            xscale="log",
            ylim=(0, 1.15 * max(one[key] for one in series)),
            xlabel="idle agents on one node",
            ylabel=ylabel,
            title=title,
        )
        axes.legend(fontsize=7)
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
