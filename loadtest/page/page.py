"""What readers of the live state cost serving: the page open against closed, in pairs.

One server knows many models and has a thousand of them loaded. `steady` asks a few of them at planned
times; an operator unloads and loads others, so that decisions are made all the time. Each round runs
every arm once, in an order that rotates; ratios are taken within a round, to `closed`. A reader
reads the stream to its end, as a browser does, and draws nothing: browsers are not on the
server's machine. Arms: `closed` has no reader, `open` one, `wall` ten.

usage: page.py --binary target/release/roundhouse --out DIR [--rounds 5] [--seconds 10]
"""

import argparse
import http.client
import json
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "chaos"))
import models  # noqa: E402
from served import Served  # noqa: E402

READERS = {"closed": 0, "open": 1, "wall": 10}
SETTINGS = """version = 1
[listen]
data = "127.0.0.1:0"
admin = "127.0.0.1:0"
[memory]
budget = "{budget}MiB"
[cache]
dir = "{work}/cache"
[log]
access = "off"
level = "warn"
[[endpoint]]
name = "default"
[[endpoint.mount]]
uri = "file://{work}/store/"
"""
BODY = json.dumps({"inputs": "hello world one two three"})
# More than a model takes, most of it workspace that nothing touches: all stay.
EACH_MIB = 12


def fill(work, known, distinct):
    """Targets whose files are the same; those that are loaded differ in their weights."""
    names = [f"t{number % 12}/m{number:05}" for number in range(known)]
    shared = models.classifier("shared", 1, 0, "shared")
    for number, name in enumerate(names):
        folder = os.path.join(work, "store", name)
        os.makedirs(folder)
        files = models.classifier(name, 1, 0, name) if number < distinct else shared
        for path, body in files.items():
            with open(os.path.join(folder, path), "wb") as file:
                file.write(body)
    return names


def read(address, stop, told):
    """In a process of its own: reads the stream until told to stop; tells how many bytes and decisions."""
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", "/admin/v1/live")
    answer, taken, decisions = connection.getresponse(), 0, 0
    while not stop.is_set():
        part = answer.read1(1 << 16)
        taken += len(part)
        decisions += part.count(b"event: decision")
    told.put((taken, decisions))


def churn(server, names, stop, told):
    """Unloads models and loads them again, one after the other."""
    done = 0
    for name in names * 1000:
        if stop.wait(0.12):
            break
        for command in ("unload", "load"):
            status, answer = server.command_on(command, name)
            if status != 200:
                raise SystemExit(f"{command} {name}: {status} {answer}")
        done += 1
    told.append(done)


def steady(address, names, rate, seconds, seed):
    """Milliseconds from the planned time to the whole answer, of each request."""
    rng = random.Random(seed)
    plan, at = [], 0.0
    while (at := at + rng.expovariate(rate)) < seconds:
        plan.append((at, rng.choice(names)))
    todo, lock, seen, begun = iter(plan), threading.Lock(), [], time.perf_counter()

    def ask():
        connection = http.client.HTTPConnection(address, timeout=60)
        while True:
            with lock:
                at, name = next(todo, (None, None))
            if at is None:
                return
            time.sleep(max(0.0, begun + at - time.perf_counter()))
            headers = {"X-Amzn-SageMaker-Target-Model": name, "Content-Type": "application/json"}
            connection.request("POST", "/endpoints/default/invocations", BODY, headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200 or models.said(body) != models.signature(name, 1):
                raise SystemExit(f"{name} was answered {answer.status}: {body[:300]}")
            seen.append((time.perf_counter() - begun - at) * 1e3)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(seen) != len(plan):
        raise SystemExit(f"{len(plan) - len(seen)} requests failed")
    return sorted(seen)


def used_cpu(server):
    with open(f"/proc/{server.process.pid}/stat", encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def window(options, server, arm, number, asked, churned):
    stop, told, ended, done = multiprocessing.Event(), multiprocessing.Queue(), threading.Event(), []
    readers = [multiprocessing.Process(target=read, args=(server.admin, stop, told)) for _ in range(READERS[arm])]
    for reader in readers:
        reader.start()
    operator = threading.Thread(target=churn, args=(server, churned, ended, done))
    operator.start()
    steady(server.data, asked, options.rate, 2, f"warm {number}")
    before = used_cpu(server)
    seen = steady(server.data, asked, options.rate, options.seconds, f"round {number}")
    cores = (used_cpu(server) - before) / options.seconds
    ended.set()
    operator.join()
    stop.set()
    heard = [told.get(timeout=30) for _ in readers]
    for reader in readers:
        reader.join()
    at = lambda share: seen[min(len(seen) - 1, int(len(seen) * share))]  # noqa: E731
    return {"round": number, "arm": arm, "requests": len(seen), "p50_ms": at(0.5), "p95_ms": at(0.95),
            "p99_ms": at(0.99), "server_cores": cores, "reloads_per_s": done[0] / (options.seconds + 2),
            "decisions_per_s": statistics.median([it[1] for it in heard]) / (options.seconds + 2) if heard else None,
            "kib_per_s": statistics.median([it[0] for it in heard]) / 1024 / (options.seconds + 2) if heard else None,
            "load_average": os.getloadavg()[0]}


def table(rows):
    text = ["| arm | p50 ms | p95 ms | p99 ms | server cores | p50 to closed | p95 to closed | decisions/s | KiB/s to each |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    closed = {row["round"]: row for row in rows if row["arm"] == "closed"}
    for arm in READERS:
        mine = [row for row in rows if row["arm"] == arm]
        middle = lambda key: statistics.median([row[key] for row in mine if row[key] is not None] or [0])  # noqa: E731

        def ratio(key):
            found = [row[key] / closed[row["round"]][key] for row in mine if row["round"] in closed]
            return f"{statistics.median(found):.3f} ({min(found):.2f} to {max(found):.2f})"

        text.append(f"| {arm} | {middle('p50_ms'):.2f} | {middle('p95_ms'):.2f} | {middle('p99_ms'):.2f} | {middle('server_cores'):.3f}"
                    f" | {ratio('p50_ms')} | {ratio('p95_ms')} | {middle('decisions_per_s'):.0f} | {middle('kib_per_s'):.0f} |")
    return "\n".join(text) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/roundhouse")
    parser.add_argument("--out", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="one window")
    parser.add_argument("--rate", type=float, default=60, help="requests a second")
    parser.add_argument("--known", type=int, default=10000)
    parser.add_argument("--loaded", type=int, default=1000)
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    work, rows, arms = tempfile.mkdtemp(prefix="page-"), [], list(READERS)
    try:
        names = fill(work, options.known, options.loaded)
        config = os.path.join(work, "roundhouse.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(SETTINGS.format(work=work, budget=EACH_MIB * options.loaded))
        server = Served(options.binary, config, os.path.join(work, "log.txt"), {})
        server.start()
        loaded = names[:options.loaded]
        for name in loaded:
            server.command_on("load", name)
        # All that is asked for is loaded: what differs is not the loads.
        residents = server.look("/admin/v1/residency")["devices"][0]["residents"]
        if len(residents) != len(loaded):
            raise SystemExit(f"{len(residents)} of {len(loaded)} are loaded")
        asked, churned = loaded[:len(loaded) // 4], loaded[len(loaded) // 2:]
        for number in range(options.rounds):
            turn = number % len(arms)
            for arm in arms[turn:] + arms[:turn]:
                rows.append(window(options, server, arm, number, asked, churned))
                print(json.dumps(rows[-1]), flush=True)
        server.terminate(60)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    with open(os.path.join(options.out, "page.json"), "w", encoding="utf-8") as file:
        json.dump({"options": vars(options), "rows": rows}, file, indent=1)
    with open(os.path.join(options.out, "page.txt"), "w", encoding="utf-8") as file:
        file.write(f"command: {' '.join(sys.argv)}\n\n{table(rows)}")
    print(table(rows))


if __name__ == "__main__":
    main()
