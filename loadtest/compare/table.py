"""The tables and the picture of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

COLUMNS = {
    "echo": [("p50 ms", "latency", "all", "p50_us"), ("p99 ms", "latency", "all", "p99_us")],
    "text": [("first token p50 ms", "pieces", "first", "p50_us"), ("p99 ms", "pieces", "first", "p99_us"),
             ("between tokens p50 ms", "pieces", "between", "p50_us"), ("p99 ms", "pieces", "between", "p99_us"),
             ("whole p50 ms", "latency", "all", "p50_us")],
}
WHAT = {
    "echo": "A Python model that gives back 512 bytes, one worker; the container contract (TorchServe: its own route).",
    "text": "The same GGUF file, greedy, streamed through OpenAI's completions; every answer has {tokens} tokens.",
}
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b")


def figure(report: dict, path: tuple[str, str, str]) -> float | None:
    """Milliseconds; none where nothing was answered."""
    group = report[path[0]].get(path[1])
    return group[path[2]] / 1e3 if group else None


def cells(runs: list[dict], middle: Callable) -> dict:
    """(scenario, title, rate) to the medians of the rounds, and counts of answers."""
    found: dict = {}
    for run in runs:
        if "report" in run:
            found.setdefault((run["scenario"], run["title"], run["rate"]), []).append(run["report"])
    table = {}
    for key, reports in found.items():
        columns = []
        for _, *path in COLUMNS[key[0]]:
            values = [value for report in reports if (value := figure(report, tuple(path))) is not None]
            columns.append(middle(values) if values else None)
        right = sum(report["outcomes"].get("right", 0) for report in reports)
        asked = sum(sum(report["outcomes"].values()) for report in reports)
        table[key] = (columns, right, asked)
    return table


def page(results: dict, middle: Callable) -> str:
    machine, settings, table = results["machine"], results["settings"], cells(results["runs"], middle)
    lines = [f"# Comparison, {results['started'][:10]}", "",
             f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}; "
             f"commit {machine['commit']}.", "", "```sh", results["command"], "```", "",
             f"Open loop at Poisson times, {settings['seconds']:g} s a run, {settings['rounds']} rounds, each server "
             "alone; medians of the rounds. Latency counts from the planned time. The load generator shares the cores. "
             "Every run is in `compare.json`. What is unfair stands in `loadtest/peers/README.md`.", ""]
    for scenario, columns in COLUMNS.items():
        keys = sorted((key for key in table if key[0] == scenario), key=lambda key: (key[2], key[1] != "Roundhouse", key[1]))
        if not keys:
            continue
        lines += [f"## {scenario}", "", WHAT[scenario].format(**settings), "",
                  "| requests/s | server | right of asked | " + " | ".join(name for name, *_ in columns) + " |",
                  "|--:|---|--:|" + "--:|" * len(columns)]
        for key in keys:
            values, right, asked = table[key]
            shown = " | ".join("-" if value is None else f"{value:.2f}" for value in values)
            lines.append(f"| {key[2]:g} | {key[1]} | {right} of {asked} | {shown} |")
        lines.append("")
    for run in results["runs"]:
        if "left_out" in run:
            lines += [f"Left out: {run['title']} ({run['scenario']}): {run['left_out']}", ""]
    return "\n".join(lines).rstrip() + "\n"


def chart(results: dict, middle: Callable) -> str:
    """Bars of the first column of each scenario, by rate."""
    table = cells(results["runs"], middle)
    titles = sorted({key[1] for key in table}, key=lambda title: (title != "Roundhouse", title))
    rows, y, width = [], 34, 900
    for scenario, columns in COLUMNS.items():
        keys = sorted((key for key in table if key[0] == scenario), key=lambda key: (key[2], titles.index(key[1])))
        values = [table[key][0][0] or 0 for key in keys]
        if not keys:
            continue
        rows.append(f'<text x="16" y="{y}" font-weight="bold">{escape(scenario)}: {escape(columns[0][0])}</text>')
        y += 12
        for key, value in zip(keys, values):
            length = 520 * value / max(max(values), 1e-9)
            colour = COLOURS[titles.index(key[1]) % len(COLOURS)]
            rows.append(f'<text x="16" y="{y + 13}">{escape(key[1])}, {key[2]:g}/s</text>'
                        f'<rect x="260" y="{y + 2}" width="{length:.1f}" height="14" fill="{colour}"/>'
                        f'<text x="{266 + length:.1f}" y="{y + 13}">{value:.2f}</text>')
            y += 20
        y += 28
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" font-family="sans-serif" '
            f'font-size="13"><rect width="{width}" height="{y}" fill="white"/>' + "".join(rows) + "</svg>\n")
