"""What the server holds, second by second: memory, ledger, disk, files, threads."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time

# How often the metrics are read: they are long.
METRICS_EVERY = 5


def looked(server, begun: float) -> dict:
    """One sample; what the server did not tell is absent."""
    pid, found = server.process.pid, {"at": round(time.monotonic() - begun, 2)}
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
            text = file.read()
        for name, field in (("rss_bytes", "Rss"), ("anonymous_bytes", "Anonymous")):
            found[name] = 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", text, re.M)[1])
        found["fds"] = len(os.listdir(f"/proc/{pid}/fd"))
        found["threads"] = len(os.listdir(f"/proc/{pid}/task"))
    shown = server.look("/admin/v1/residency")
    if shown:
        device = shown["devices"][0]
        found |= {name: device[name] for name in
                  ("budget_bytes", "charged_bytes", "reserved_bytes", "over_bytes")}
        found |= {"residents": len(device["residents"]), "waiters": shown["waiters"],
                  "loads": len(shown["loads"]), "failed": len(shown["failed"]),
                  "leases": sum(it["leases"] for it in device["residents"])}
        if shown["disk"]:
            found |= {"disk_used_bytes": shown["disk"]["used_bytes"],
                      "disk_budget_bytes": shown["disk"]["budget_bytes"]}
    return found


def metrics(server) -> dict[str, float]:
    """What of the metrics is drawn, told by labels."""
    import served

    status, answer, _ = served.ask(server.admin, "GET", "/metrics", None, {}, 10.0)
    sums: dict[str, float] = {}
    for line in answer.decode(errors="replace").splitlines() if status == 200 else []:
        hit = re.match(r"(roundhouse_\w+)(\{.*\})? (\S+)$", line)
        if not hit:
            continue
        name, labels, value = hit[1], hit[2] or "", float(hit[3])
        for label in ("tier", "bound", "reason", "stage", "outcome"):
            inner = re.search(rf'{label}="([^"]*)"', labels)
            if inner and not name.endswith("_bucket"):
                key = f"{name}:{inner[1]}"
                sums[key] = sums.get(key, 0.0) + value
        if not name.endswith("_bucket"):
            sums[name] = sums.get(name, 0.0) + value
    return sums


class Watch(threading.Thread):
    """Samples until it is told to stop."""

    def __init__(self, server, begun: float) -> None:
        super().__init__(daemon=True)
        self.server, self.begun = server, begun
        self.over = threading.Event()
        self.samples: list[dict] = []

    def run(self) -> None:
        count = 0
        while not self.over.wait(1.0):
            sample = looked(self.server, self.begun)
            if count % METRICS_EVERY == 0:
                sample["metrics"] = metrics(self.server)
            self.samples.append(sample)
            count += 1


def slope(points: list[tuple[float, float]]) -> float:
    """Units a second, by least squares; 0 of fewer than two."""
    if len(points) < 2:
        return 0.0
    middle = sum(x for x, _ in points) / len(points)
    level = sum(y for _, y in points) / len(points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * (y - level) for x, y in points) / spread if spread else 0.0
