"""Random trouble against one server, and a judge of everything that it answers.

Some thirty models that sign their version into their answers lie in an S3-like store and in a
folder; the budget is a third of what they take. Clients ask all the time. Meanwhile versions are
replaced file by file, broken off, truncated, corrupted, deleted; stores fail, stall and lie; the
disk is full; the server is killed between its stages and stopped in order; operators give orders.
Phases of trouble alternate with calm ones, in which every whole model has to answer with its newest
version. What counts as a violation stands in oracle.py, clients.py and trouble.py.

usage: chaos.py --binary target/release/roundhouse --out DIR [--minutes 20] [--seed N]
       A disk of its own for the cache, so that it can be full, takes root.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter

import uploads
from clients import BODY, PATH, Clients, Watcher
from served import Failed, ask
from trouble import UPLOADS, Trouble
from world import World

COUNTERS = ["roundhouse_residency_evictions_total", "roundhouse_store_fetched_bytes_total",
            "roundhouse_residency_loads_total"]


def first_version(world: World) -> None:
    rng = random.Random(world.options.seed)
    for target in world.targets:
        uploads.publish(world, target, rng, slowly=False)
    for target in world.halves:
        world.oracle.note(target, "absent")


def find_budget(world: World) -> int:
    """A third of what all models take, as a first life with room for all of them tells."""
    world.settings(None, "150MiB")
    world.served.start()
    for target in world.targets:
        headers = {"X-Amzn-SageMaker-Target-Model": target.name}
        status, body, _ = ask(world.served.data, "POST", PATH, BODY, headers, 60)
        if status != 200:
            raise SystemExit(f"{target.name} was answered {status}: {body[:300]}")
    seen = world.served.look("/admin/v1/residency")
    world.has_versions = world.served.look("/admin/v1/versions?target=" + world.targets[0].name) is not None
    world.served.terminate(30)
    shutil.rmtree(os.path.join(world.work, "disk", "cache"))
    return sum(device["charged_bytes"] for device in seen["devices"]) // 3


def quantile(values: list, q: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(len(values) * q))], 3) if values else 0.0


def run(world: World, options) -> dict:
    first_version(world)
    budget = find_budget(world)
    world.settings(budget, options.cache)
    world.begun = time.monotonic()
    world.served.lives.clear()
    world.served.start()
    watcher, clients = Watcher(world), Clients(world, options.clients)
    trouble = Trouble(world, clients, watcher)
    calms, metrics, end = [], Counter(), time.monotonic() + options.minutes * 60
    try:
        while time.monotonic() < end:
            clients.going.set()
            trouble.phase(min(options.phase, max(1.0, end - time.monotonic())))
            calms.append(trouble.calm())
            metrics.update({name: world.served.metrics().get(name, 0.0) for name in COUNTERS})
            print(f"{(time.monotonic() - world.begun) / 60:.1f} min: calm after "
                  f"{calms[-1]['seconds_to_newest']} s, {world.counts['violations']} violations, "
                  f"{world.counts['asked: 200']} answers", flush=True)
    except Failed as error:
        print(f"the run ends early: {error}", flush=True)
    finally:
        clients.stop()
        watcher.stop()
        if world.served.process.poll() is None:
            world.served.terminate(30)
    return report(world, options, budget, calms, watcher, metrics)


def report(world, options, budget, calms, watcher, metrics) -> dict:
    took = {what: {"count": len(values), "p50_s": quantile(values, 0.5),
                   "p99_s": quantile(values, 0.99), "max_s": round(max(values), 3)}
            for what, values in sorted(world.taken.items())}
    lags = world.oracle.lags
    return {
        "seed": options.seed, "minutes": options.minutes, "models": options.models,
        "clients": options.clients, "budget_bytes": budget, "cache": options.cache,
        "lag_allowed_s": options.lag, "disk_of_its_own": world.disk_is_small,
        "versions_and_use": world.has_versions, "lives": len(world.served.lives),
        "unhealthy_s": round(world.oracle.unhealthy.total(world.begun), 1),
        "counts": dict(sorted(world.counts.items())), "ledger": dict(sorted(watcher.samples.items())),
        "took": took, "calms": calms,
        "lag_behind_newest_s": {"answers": len(lags), "p50": quantile(lags, 0.5),
                                "p99": quantile(lags, 0.99), "max": quantile(lags, 1.0)},
        "last_life_counters": dict(metrics), "bucket_requests": world.bucket.served,
        "refusals_by_whole_models": dict(world.refusals.most_common(20)),
        "violations": world.violations,
    }


GROUPS = {
    "Uploads": lambda kind: kind in {event.__name__ for event in UPLOADS} | {"never_complete"},
    "Stores and disk": lambda kind: kind.startswith(("store: ", "disk full")),
    "Process": lambda kind: kind.startswith(("kill -9", "SIGTERM")),
    "Operators, with the status": lambda kind: kind.startswith("operator: ") and kind[-1].isdigit(),
    "Answers to clients, and to the calm's questions": lambda kind: kind.startswith(("asked: ", "calm: ")),
    "Other": lambda kind: True,
}


def tables(found: dict) -> str:
    """What happened and what was measured, for people."""
    left = {kind: number for kind, number in found["counts"].items()
            if not (kind.startswith("operator: ") and not kind[-1].isdigit())}
    text = ["| what | how often |", "|---|---|"]
    for group, belongs in GROUPS.items():
        of_group = {kind: left.pop(kind) for kind in list(left) if belongs(kind)}
        told = ", ".join(f"{kind.removeprefix('operator: ').replace('_', ' ')} {number}"
                         for kind, number in of_group.items())
        text.append(f"| {group} | {told} |")
    ledger = ", ".join(f"{kind} {number}" for kind, number in found["ledger"].items())
    text += [f"| Ledger | {ledger} |", "", "| seconds | count | p50 | p99 | most |", "|---|--:|--:|--:|--:|"]
    names = {"device": "answered, model loaded", "disk": "answered, loaded from disk",
             "store": "answered, fetched and loaded"}
    for what, took in found["took"].items():
        what = names.get(what, f"answered {what}" if what.isdigit() else what)
        text.append(f"| {what} | {took['count']} | {took['p50_s']} | {took['p99_s']} | {took['max_s']} |")
    lag = found["lag_behind_newest_s"]
    text.append(f"| age of the newest version, where an older one answered | {lag['answers']} | {lag['p50']}"
                f" | {lag['p99']} | {lag['max']} |")
    calms = [calm["seconds_to_newest"] for calm in found["calms"]]
    text.append(f"| calm until every whole model answers with its newest version | {len(calms)}"
                f" | {quantile(calms, 0.5)} | {quantile(calms, 0.99)} | {max(calms, default=0.0)} |")
    return "\n".join(text) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/roundhouse")
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--models", type=int, default=30)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--phase", type=float, default=50, help="seconds of trouble before each calm")
    parser.add_argument("--every", type=float, default=0.6, help="mean seconds between events")
    parser.add_argument("--lag", type=float, default=30, help="healthy seconds a new version may take")
    parser.add_argument("--cache", default="45MiB")
    parser.add_argument("--verbose", action="store_true", help="print every event")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {options.seed}", flush=True)
    os.makedirs(options.out, exist_ok=True)
    work = tempfile.mkdtemp(prefix="chaos-")
    world = World(options, work)
    try:
        found = run(world, options)
        if world.violations:
            shutil.copy(world.served.log, os.path.join(options.out, "server.log"))
    finally:
        if world.served.process and world.served.process.poll() is None:
            world.served.kill()
        world.close()
    found["command"] = " ".join(["python3", *sys.argv])
    with open(os.path.join(options.out, "chaos.json"), "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)
    with open(os.path.join(options.out, "chaos.md"), "w", encoding="utf-8") as file:
        file.write(tables(found))
    violations = world.counts["violations"]
    print(f"{violations} violations; {found['counts']}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
