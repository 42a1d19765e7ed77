"""Pictures of a replay over time: latency, what is held, where models were found."""

from __future__ import annotations

import math
import os
from xml.sax.saxutils import escape

WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM = 960, 300, 72, 176, 34, 40
COLOURS = ["#2563eb", "#b45309", "#15803d", "#be185d", "#6d28d9", "#0f766e"]
FAULT = "#fca5a5"
MIB = 1 << 20


class Plot:
    """Lines over seconds; faults of the store are shaded."""

    def __init__(self, title: str, unit: str, seconds: float, windows: list, log: bool = False) -> None:
        self.title, self.unit, self.seconds, self.windows, self.log = title, unit, seconds, windows, log
        self.series: list[tuple[str, list[tuple[float, float]]]] = []

    def line(self, name: str, points: list[tuple[float, float]]) -> None:
        points = [(x, y) for x, y in points if y is not None and (y > 0 or not self.log)]
        if points:
            self.series.append((name, points))

    def svg(self) -> str:
        values = [y for _, points in self.series for _, y in points] or [1.0]
        least, most = (min(values), max(values)) if self.log else (0.0, max(max(values), 1e-9) * 1.08)
        if self.log:
            least, most = 10 ** math.floor(math.log10(least)), 10 ** math.ceil(math.log10(most * 1.01))
        x = lambda at: LEFT + (WIDE - LEFT - RIGHT) * at / self.seconds  # noqa: E731

        def y(value: float) -> float:
            part = (math.log10(value / least) / math.log10(most / least)) if self.log else (value - least) / (most - least)
            return HIGH - BOTTOM - (HIGH - TOP - BOTTOM) * part

        out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(self.title)}" '
               'font-family="system-ui,sans-serif" font-size="12">', f'<rect width="{WIDE}" height="{HIGH}" fill="#ffffff"/>',
               f'<text x="{LEFT}" y="20" font-size="14" font-weight="600" fill="#111827">{escape(self.title)}</text>']
        for start, end, _ in self.windows:
            end = min(self.seconds, end if end is not None else self.seconds)
            out.append(f'<rect x="{x(start):.1f}" y="{TOP}" width="{max(1.0, x(end) - x(start)):.1f}" height="{HIGH - TOP - BOTTOM}" '
                       f'fill="{FAULT}" opacity="0.45"/>')
        for value in self.marks(least, most):
            out.append(f'<line x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#e5e7eb"/>'
                       f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#374151">{value:g}</text>')
        for at in range(6):
            second = self.seconds * at / 5
            label = f"{second / 60:.1f} min" if self.seconds > 180 else f"{second:.0f} s"
            out.append(f'<text x="{x(second):.1f}" y="{HIGH - 18}" text-anchor="middle" fill="#374151">{label}</text>')
        out.append(f'<text x="{LEFT - 8}" y="{TOP - 6}" text-anchor="end" fill="#374151">{escape(self.unit)}</text>')
        for index, (name, points) in enumerate(self.series):
            colour = COLOURS[index % len(COLOURS)]
            path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
            self.legend(out, index, colour, name)
        if self.windows:
            self.legend(out, len(self.series), FAULT, "the store fails", 8)
        return "\n".join([*out, "</svg>", ""])

    @staticmethod
    def legend(out: list[str], index: int, colour: str, name: str, height: int = 3) -> None:
        at = TOP + 8 + 20 * index
        out.append(f'<rect x="{WIDE - RIGHT + 14}" y="{at - height / 2}" width="18" height="{height}" fill="{colour}"/>'
                   f'<text x="{WIDE - RIGHT + 40}" y="{at + 4}" fill="#111827">{escape(name)}</text>')

    def marks(self, least: float, most: float) -> list[float]:
        if self.log:
            return [10.0 ** power for power in range(round(math.log10(least)), round(math.log10(most)) + 1)]
        step = 10 ** math.floor(math.log10(most / 2))
        step *= next(factor for factor in (1, 2, 5, 10) if most / (factor * step) <= 6)
        return [step * at for at in range(int(most / step) + 1)]


def by_window(rows: list[dict], seconds: float) -> dict[str, list[tuple[float, float]]]:
    """Quantiles of right answers in each of sixty parts of the time."""
    width = max(1.0, seconds / 60)
    parts: dict[int, list[float]] = {}
    for row in rows:
        if row["kind"] == "right":
            parts.setdefault(int(row["at"] / width), []).append(1e3 * row["latency"])
    found: dict[str, list[tuple[float, float]]] = {"p50": [], "p95": [], "p99": []}
    for part, values in sorted(parts.items()):
        values.sort()
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            found[name].append((min(seconds, (part + 0.5) * width), values[min(len(values) - 1, int(share * len(values)))]))
    return found


def draw(folder: str, found: dict) -> None:
    seconds, windows, samples = found["seconds"], found["windows"], found["samples"]
    latency = Plot("Right answers, from the planned time", "ms", seconds, windows, log=True)
    for name, points in by_window(found["rows"], seconds).items():
        latency.line(name, points)
    held = Plot("What the server holds", "MiB", seconds, windows)
    for name, field in (("resident set", "rss_bytes"), ("anonymous pages", "anonymous_bytes"), ("charged", "charged_bytes"),
                        ("budget", "budget_bytes"), ("disk cache", "disk_used_bytes")):
        held.line(name, [(it["at"], it[field] / MIB) for it in samples if field in it])
    models = Plot("Models and requests", "count", seconds, windows)
    for name, field in (("residents", "residents"), ("loads under way", "loads"), ("waiting requests", "waiters"), ("failed models", "failed")):
        models.line(name, [(it["at"], it[field]) for it in samples if field in it])
    told = [(it["at"], it["metrics"]) for it in samples if it.get("metrics")]
    hits, regret = Plot("Requests that found their model on the device", "%", seconds, windows), Plot(
        "Loads by those of the offline optimum, latest requests", "times", seconds, windows)
    grants = "roundhouse_residency_grants_total"
    pairs = [(at, now.get(f"{grants}:device", 0) - before.get(f"{grants}:device", 0), now.get(grants, 0) - before.get(grants, 0))
             for (_, before), (at, now) in zip(told, told[3:])]
    hits.line("device", [(at, 100 * device / all_of_them) for at, device, all_of_them in pairs if all_of_them > 0])
    for bound in ("lower", "upper"):
        key = f"roundhouse_residency_regret_ratio:{bound}"
        regret.line(f"{bound} bound", [(at, it[key]) for at, it in told if it.get(key) == it.get(key) and key in it])
    for name, plot in (("latency", latency), ("memory", held), ("models", models), ("hits", hits), ("regret", regret)):
        with open(os.path.join(folder, f"{name}.svg"), "w", encoding="utf-8") as file:
            file.write(plot.svg())
