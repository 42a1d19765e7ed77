"""Alibaba's GenAI trace of 2026 as a plan: when, whose, which model."""

from __future__ import annotations

import collections
import csv
import datetime


def read(path: str) -> list[tuple[float, int, int]]:
    """Seconds since the first request, tenant by order of appearance, model by rank: 0 is asked for most."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [(row["gmt_create"], row["groupId"], row["checkpoint_model_version_id"])
                for row in csv.DictReader(file) if row["checkpoint_model_version_id"]]
    asked = collections.Counter(model for _, _, model in rows)
    rank = {model: at for at, (model, _) in enumerate(sorted(asked.items(), key=lambda it: (-it[1], it[0])))}
    tenants: dict[str, int] = {}
    found = [(datetime.datetime.fromisoformat(time).timestamp(), tenants.setdefault(tenant, len(tenants)),
              rank[model]) for time, tenant, model in rows]
    found.sort(key=lambda it: it[0])
    first = found[0][0]
    return [(at - first, tenant, model) for at, tenant, model in found]


def plan(path: str, speed: float, seconds: float, tenants: int, ranks: int, skip: float = 0.0) -> list[tuple[float, int, int]]:
    """The requests of so many seconds at that speed, behind a part of the requests, from the beginning again
    where the trace ends.

    The trace's thousands of tenants become a few, its rarest models each other's: all of the popular ones stay.
    """
    trace = read(path)
    # A round ends as long after its last request as requests are apart.
    length = trace[-1][0] * (1 + 1 / len(trace)) / speed
    found, start = [], -trace[min(len(trace) - 1, int(skip * len(trace)))][0] / speed
    while start < seconds:
        for at, tenant, rank in trace:
            if start + at / speed >= seconds:
                return found
            if start + at / speed < 0:
                continue
            found.append((start + at / speed, tenant % tenants, rank if rank < ranks else ranks // 2 + rank % (ranks // 2)))
        start += length
    return found
