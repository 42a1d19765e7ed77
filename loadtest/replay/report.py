"""What a replay came to: figures, what was wrong, and pictures."""

from __future__ import annotations

import collections
import csv
import json
import os
import platform

import picture
from watching import slope

MIB = 1 << 20
# What the process may hold more at the end of the second half than its own slope would have it at its
# beginning: allocators' slack, or a twentieth.
GROWS_MOST, GROWS_PART = 24 * MIB, 0.05
# Files and threads beyond those of the rest before: connections that are kept, a pool's threads.
FILES_MOST, THREADS_MOST = 24, 12
# What may be said while the store fails, and so long after: not that a request or an answer was wrong.
REFUSALS = {429, 500, 502, 503, 504, 424, 530}
# Samples in a row that may be over a budget.
OVER_MOST = 5


def quantiles(values: list[float]) -> dict:
    values = sorted(values)
    if not values:
        return {"count": 0}
    at = lambda part: round(1e3 * values[min(len(values) - 1, int(part * len(values)))], 2)  # noqa: E731
    return {"count": len(values), "p50_ms": at(0.5), "p90_ms": at(0.9), "p95_ms": at(0.95), "p99_ms": at(0.99),
            "p999_ms": at(0.999), "max_ms": round(1e3 * values[-1], 2)}


def latencies(rows: list[dict]) -> dict:
    """Of right answers, from the planned time: all, by where the model was found, and what loads took of it."""
    right = [row for row in rows if row["kind"] == "right"]
    groups = {"all": [row["latency"] for row in right]}
    for tier in ("device", "host", "disk", "store"):
        found = [row["latency"] for row in right if row["tier"] == tier]
        if found:
            groups[tier] = found
    groups["all, no fault near"] = [row["latency"] for row in right if not row["near_fault"]]
    groups["device, no fault near"] = [row["latency"] for row in right if not row["near_fault"] and row["tier"] == "device"]
    groups["waited for a load"] = [float(row["load_ms"]) / 1e3 for row in right if float(row["load_ms"] or 0) > 0]
    groups["queued"] = [float(row["queue_ms"] or 0) / 1e3 for row in right]
    groups["sent late by the clients"] = [max(0.0, row["late"]) for row in rows]
    return {name: quantiles(values) for name, values in groups.items()}


def memory(samples: list[dict], seconds: float) -> dict:
    """How much it grew over the second half, by the slope of what was noted each second."""
    whole = [it for it in samples if it["at"] >= seconds / 2 and "anonymous_bytes" in it and "charged_bytes" in it]
    half = [(it["at"], it["anonymous_bytes"]) for it in whole]
    # What is loaded comes and goes with what is asked for; what is held beside that may not grow.
    beside = [(it["at"], it["anonymous_bytes"] - it["charged_bytes"]) for it in whole]
    level = sum(y for _, y in half) / max(1, len(half))
    lasted = half[-1][0] - half[0][0] if half else 0.0
    return {"mean_bytes": round(level), "slope_bytes_per_minute": round(60 * slope(half)), "grew_bytes": round(slope(half) * lasted),
            "grew_beside_models_bytes": round(slope(beside) * lasted),
            "bound_bytes": round(max(GROWS_MOST, GROWS_PART * level)),
            "most_rss_bytes": max((it.get("rss_bytes", 0) for it in samples), default=0)}


def faults_of(found: dict, kinds: collections.Counter, grown: dict) -> list[str]:
    """All that is wrong."""
    faults = []
    wrong = [row for row in found["rows"] if row["kind"] == "wrong"]
    if wrong:
        faults.append(f"{len(wrong)} wrong answers, the first of {wrong[0]['target']}: {wrong[0].get('said')}")
    alone = [row for row in found["rows"] if row["kind"] not in ("right", "wrong")
             and not (row["near_fault"] and row["status"] in REFUSALS)]
    if alone:
        faults.append(f"{len(alone)} errors without a fault of the store, the first {alone[0]['kind']} of "
                      f"{alone[0]['target']} at {alone[0]['at']:.0f} s: {alone[0].get('said')}")
    if not kinds["right"]:
        faults.append("no right answer")
    # Both: models may take more and more of their budget, and what they leave may be kept for the next.
    if min(grown["grew_bytes"], grown["grew_beside_models_bytes"]) > grown["bound_bytes"]:
        faults.append(f"memory grew by {grown['grew_bytes'] / MIB:.1f} MiB over the second half")
    over = 0
    for sample in found["samples"]:
        # What was measured larger than promised may stand over the budget until others have left.
        over = over + 1 if sample.get("over_bytes", 0) > 0 else 0
        if over > OVER_MOST:
            faults.append(f"over the budget for {over} samples, by {sample['over_bytes']} at {sample['at']} s")
            break
    if any(it.get("disk_used_bytes", 0) > it.get("disk_budget_bytes", 1 << 62) for it in found["samples"]):
        faults.append("the disk cache was beyond its size")
    before, after = found["before"], found["after"]
    if found["died"] is not None:
        return [*faults, f"the server died: {found['died']}"]
    for name in ("leases", "waiters", "loads", "reserved_bytes"):
        if after.get(name) != 0:
            faults.append(f"{name} in the end: {after.get(name)}")
    for name, most in (("fds", FILES_MOST), ("threads", THREADS_MOST)):
        if after.get(name, 0) > before.get(name, 0) + most:
            faults.append(f"{name}: {before.get(name)} before, {after.get(name)} after")
    if found["exit_status"] != 0:
        faults.append(f"it ended with {found['exit_status']}")
    return faults


def text(found: dict, kinds: collections.Counter, grown: dict, faults: list[str], command: str) -> str:
    """The report for people."""
    told, regret = found["metrics"], found["regret"] or {}
    tiers = {name.split(":")[1]: count for name, count in told.items() if name.startswith("roundhouse_residency_grants_total:")}
    grants = max(1.0, sum(tiers.values()))
    asked = len(found["rows"]) or 1
    calm = [row for row in found["rows"] if not row["near_fault"]] or [{"kind": "right"}]
    good = lambda rows: 100 * sum(row["kind"] == "right" for row in rows) / len(rows)  # noqa: E731
    evicted = told.get("roundhouse_residency_evictions_total:evicted", 0)
    lines = [
        f"command: {command}", f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} processors", "",
        f"{asked} requests to {found['targets']} targets ({found['store_bytes'] / 1e6:.0f} MB) in {found['seconds']:.0f} s; "
        f"memory for {found['budget_bytes'] / 1e6:.0f} MB, disk for {found['cache_bytes'] / 1e6:.0f} MB", "",
        "answers: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()),
        f"right: {good(found['rows']):.3f} % of all, {good(calm):.3f} % of those with no fault of the store near",
        f"the store: {len(found['windows'])} faults; " + ", ".join(f"{count} {kind}" for kind, count in sorted(found["served_by_store"].items())),
        "", "| from the planned time | answers | p50 ms | p90 ms | p95 ms | p99 ms | p99.9 ms | most ms |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for name, it in latencies(found["rows"]).items():
        figures = [it.get(key, "-") for key in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")]
        lines.append(f"| {name} | {it['count']} | " + " | ".join(map(str, figures)) + " |")
    ratio = regret.get("ratio") or {}
    shown = lambda value: "-" if value is None else f"{value:.2f}"  # noqa: E731
    after, before = found["after"], found["before"]
    lines += [
        "", "found on: " + ", ".join(f"{tier} {100 * count / grants:.1f} %" for tier, count in sorted(tiers.items())),
        f"loads {told.get('roundhouse_residency_loads_total', 0):.0f}, evictions {evicted:.0f}, "
        f"fetched {told.get('roundhouse_store_fetched_bytes_total', 0) / 1e6:.0f} MB, "
        f"retries {told.get('roundhouse_store_retries_total', 0):.0f}, failures {told.get('roundhouse_residency_failures_total', 0):.0f}",
        f"regret of the latest requests: {shown(ratio.get('lower'))} to {shown(ratio.get('upper'))} times the loads of the offline optimum",
        f"memory (anonymous pages) over the second half: {grown['mean_bytes'] / MIB:.1f} MiB, {grown['slope_bytes_per_minute'] / MIB:+.2f} MiB a "
        f"minute, {grown['grew_bytes'] / MIB:+.1f} MiB in all, {grown['grew_beside_models_bytes'] / MIB:+.1f} beside what models are charged; bound {grown['bound_bytes'] / MIB:.0f} MiB",
        f"at rest before and after: files {before.get('fds')} and {after.get('fds')}, threads {before.get('threads')} and {after.get('threads')}, "
        f"leases {after.get('leases')}, waiters {after.get('waiters')}, reserved {after.get('reserved_bytes')}",
        f"ended with {found['exit_status']} after {found['exit_seconds']:.1f} s", "",
        "\n".join(f"WRONG: {fault}" for fault in faults) or "nothing was wrong"]
    return "\n".join(lines) + "\n"


def write(folder: str, found: dict, command: str) -> list[str]:
    """Writes all of it; what was wrong."""
    os.makedirs(folder, exist_ok=True)
    kinds = collections.Counter(row["kind"] for row in found["rows"])
    grown = memory(found["samples"], found["seconds"])
    faults = faults_of(found, kinds, grown)
    told = text(found, kinds, grown, faults, command)
    with open(os.path.join(folder, "report.txt"), "w", encoding="utf-8") as file:
        file.write(told)
    data = {name: value for name, value in found.items() if name not in ("rows", "samples")}
    first = [row for row in found["rows"] if row["kind"] != "right"][:100]
    data |= {"answers": kinds, "latency": latencies(found["rows"]), "memory": grown, "faults": faults, "command": command, "first_errors": first}
    with open(os.path.join(folder, "report.json"), "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1)
        file.write("\n")
    columns = ["at", "rss_bytes", "anonymous_bytes", "fds", "threads", "budget_bytes", "charged_bytes", "reserved_bytes", "residents",
               "waiters", "loads", "leases", "failed", "disk_used_bytes"]
    with open(os.path.join(folder, "samples.csv"), "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(found["samples"])
    picture.draw(folder, found)
    print(told)
    return faults
