"""The results of `speed.py` as tables, and as the table and the plot of the page `docs/reference/speed.md`.

`python benchmarks/speed_report.py` makes both anew from `results/speed.json`.
"""

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "reference" / "speed.md"
PLOT = FOLDER.parent / "docs" / "pictures" / "speed.svg"
SECTION = re.compile(r"(?<=<!-- speed -->\n).*?(?=<!-- /speed -->)", re.DOTALL)
LIMIT = "products alone"
"""The contender that only multiplies matrices: what share of its speed another reaches."""
EAGER, COMPILED = "Refit eager", "Refit compiled"
COLOURS = ("#1f6feb", "#d1571f")


def rows_per_second(entry: dict[str, Any], results: dict[str, Any]) -> list[float]:
    """Of each sample, lowest first."""
    num_rows = results["works"][entry["work"]]["rows_per_sample"]
    return sorted(num_rows / seconds for seconds in entry["seconds"])


def walk_races(results: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, dict[str, Any]]]]:
    """Each work and number of threads, with its entries by contender; rows a second and its spread are added to them."""
    for threads in map(int, results["limits"]):
        for work in results["works"]:
            race = {}
            for entry in results["entries"]:
                if (entry["work"], entry["threads"]) == (work, threads):
                    speeds = rows_per_second(entry, results)
                    median = statistics.median(speeds)
                    race[entry["contender"]] = {**entry, "speed": median, "low": speeds[0], "high": speeds[-1]}
            yield work, threads, race


def describe_work(work: dict[str, Any]) -> str:
    """Rows, columns, units and batches in words."""
    units = "→".join(map(str, work["hidden_sizes"]))
    optimizer = {"sgd": "SGD", "adamw": "AdamW"}[work["optimizer"]]
    return f"{work['num_rows']:,} by {work['num_inputs']}, {units}, batch {work['batch_size']:,}, {optimizer}"


def build_tables(results: dict[str, Any]) -> Iterator[Table]:
    """A table for each work and number of threads."""
    for work_name, threads, race in walk_races(results):
        work, limits = results["works"][work_name], results["limits"][str(threads)]
        ours = [name for name in (EAGER, COMPILED) if name in race]
        title = f"{work_name}: {describe_work(work)}; threads {threads}"
        caption = f"large products {limits['gflops']:.0f} GFLOP/s, copies {limits['gb_per_second']:.1f} GB/s"
        ratios = [f"{name} is … times as fast" for name in ours]
        shares = ("GFLOP/s", "of the products", "of the memory")
        table = Table("contender", "rows/s", "spread", *ratios, *shares, "warm-up (s)", "peak (MB)", "loss", title=title)
        table.caption = caption
        for name, entry in race.items():
            speed, limit = entry["speed"], race[LIMIT]["speed"] if LIMIT in race else None
            gb_per_second = speed * work["bytes_per_row"] / 1e9
            table.add_row(
                name,
                f"{speed:,.0f}",
                f"-{1 - entry['low'] / speed:.0%} +{entry['high'] / speed - 1:.0%}",
                *("" if name == LIMIT else f"{race[own]['speed'] / speed:.2f}" for own in ours),
                f"{speed * work['flops_per_row'] / 1e9:.1f}",
                "" if limit is None else f"{speed / limit:.0%}",
                "" if name == LIMIT else f"{gb_per_second / limits['gb_per_second']:.1%}",
                f"{entry['warm_up_seconds']:.1f}",
                f"{entry['peak_mb']:.0f}",
                "" if entry["loss"] is None else f"{entry['loss']:.4f}",
            )
        yield table


def build_compile_table(results: dict[str, Any]) -> Table:
    """Seconds that compiling takes: what the first sample takes longer than others."""
    table = Table("Refit compiled", "threads", "empty cache, s", "new process, s")
    for work, threads, race in walk_races(results):
        if COMPILED in race:
            again = results["compiling_again"][str(threads)][work]
            table.add_row(work, str(threads), f"{race[COMPILED]['warm_up_seconds']:.1f}", f"{again:.1f}")
    return table


def describe_run(results: dict[str, Any]) -> str:
    """Date, machine and versions in a sentence."""
    machine, versions = results["machine"], ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    processor = f"{machine['processor']}, {machine['processors']} processors, {', '.join(machine['instructions'])}"
    return f"{results['date']}, {processor}, {machine['memory_gb']} GB, {machine['system']}. {versions}."


def render_section(results: dict[str, Any]) -> str:
    """Return the results as the page has them between its marks."""
    races = {(work, threads): race for work, threads, race in walk_races(results)}
    names = list(dict.fromkeys(entry["contender"] for entry in results["entries"]))
    heads = [f"{work}, {threads}" for work, threads in races]
    lines = [f"| thousand rows/s, threads | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(races)}"]
    for name in names:
        cells = []
        for race in races.values():
            ratio = "" if name == LIMIT else f" ({race[EAGER]['speed'] / race[name]['speed']:.2f})"
            thousands = race[name]["speed"] / 1000
            cells.append(f"{thousands:,.{0 if thousands >= 100 else 1}f}{ratio}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    works = "; ".join(f"{name}: {describe_work(work)}" for name, work in results["works"].items())
    return "\n".join([*lines, "", f"{works}.", "", describe_run(results)])


def write_page(results: dict[str, Any]) -> None:
    """Put the table between the page's marks."""
    text, count = SECTION.subn(lambda _: render_section(results) + "\n", PAGE.read_text())
    if count != 1:
        raise ValueError(f"{PAGE.name}: expected one section between <!-- speed --> and <!-- /speed -->, found {count}")
    PAGE.write_text(text)


def draw_plot(results: dict[str, Any], path: Path) -> None:
    """A panel a work: rows a second of each contender, with lowest and highest, and the speed of the products alone as a line."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    plt.rcParams["svg.hashsalt"] = "speed"
    works, threads_list = list(results["works"]), list(map(int, results["limits"]))
    figure, grid = plt.subplots(-(-len(works) // 2), 2, figsize=(11, 8), layout="constrained", squeeze=False)
    panels = dict(zip(works, grid.flat, strict=False))
    for work, threads, race in walk_races(results):
        panel, colour = panels[work], COLOURS[threads_list.index(threads) % len(COLOURS)]
        names = [name for name in race if name != LIMIT]
        speeds, lows, highs = ([race[name][part] for name in names] for part in ("speed", "low", "high"))
        spreads = [
            [speed - low for speed, low in zip(speeds, lows, strict=True)],
            [high - speed for speed, high in zip(speeds, highs, strict=True)],
        ]
        label = f"{threads} thread{'s' * (threads > 1)}"
        heights = [height + 0.12 * (threads - 1.5) for height in range(len(names))]
        panel.errorbar(speeds, heights, xerr=spreads, fmt="o", color=colour, capsize=2, markersize=5, label=label)
        if LIMIT in race:
            panel.axvline(race[LIMIT]["speed"], color=colour, linestyle="--", linewidth=1)
        panel.set_yticks(range(len(names)), names)
        panel.set_title(f"{work}: {describe_work(results['works'][work])}", fontsize=9)
    for panel in panels.values():
        panel.invert_yaxis()
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel("rows per second; dashed: the matrix products alone", fontsize=8)
        panel.grid(axis="x", alpha=0.3, which="both")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(threads_list), fontsize=8)
    figure.supxlabel(describe_run(results), fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    saved = json.loads((FOLDER / "results" / "speed.json").read_text())
    draw_plot(saved, PLOT)
    write_page(saved)
