"""How much a tenant that walks over many models costs one whose few models fit.

Tenant `calm` asks for six models steadily (Poisson arrivals, Zipf popularity); they fit the budget
with room for a few more. Tenant `scan` asks for five hundred models of its own, one after the
other, round and round, eight at a time. All are signed classifiers of the same size; every answer
is checked. Each round runs every arm once, in an order that rotates; ratios are taken within a
round, to `alone` and to `elsewhere`. A window is cut into slices of three seconds, and the median of
their p99 is compared: what else the machine does comes in bursts. Arms:

alone      calm by itself
one        scan asks for one model that is loaded, at the same rate: requests without loads
elsewhere  scan walks, at a second server beside: the same work for the machine, another residency
lru        scan walks, policy = "lru"
default    scan walks, the default policy, no tenants
share      scan walks, a share of 10 for calm
floor      scan walks, a floor for calm that holds its six models
pressing   as floor, and loads are as urgent as requests (load_niceness = 0)

usage: neighbour.py --binary target/release/roundhouse --out DIR [--rounds 5] [--seconds 12]
"""

import argparse
import http.client
import itertools
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

CALM = [f"calm/m{number}" for number in range(6)]
ROWS = 8000
# Seconds.
SLICE = 3
SETTINGS = """version = 1
[listen]
data = "127.0.0.1:0"
admin = "127.0.0.1:0"
[cache]
dir = "{work}/{cache}"
[log]
access = "off"
level = "warn"
[[endpoint]]
name = "default"
[[endpoint.mount]]
uri = "file://{work}/store/"
"""
ARMS = {
    "alone": "",
    "one": "",
    "elsewhere": "",
    "lru": '[residency]\npolicy = "lru"\n',
    "default": "",
    "share": '[[tenant]]\nname = "calm"\nshare = 10.0\n',
    "floor": '[[tenant]]\nname = "calm"\nfloor = "{floor}B"\n',
    "pressing": '[residency]\nload_niceness = 0\n[[tenant]]\nname = "calm"\nfloor = "{floor}B"\n',
}
PATH = "/endpoints/default/invocations"
BODY = json.dumps({"inputs": "hello world one two three"})


def invoke(connection, target):
    """Tier of a right answer; raises for any other."""
    headers = {"X-Amzn-SageMaker-Target-Model": target, "Content-Type": "application/json"}
    connection.request("POST", PATH, BODY, headers)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200 or models.said(body) != models.signature(target, 1):
        raise SystemExit(f"{target} was answered {answer.status}: {body[:300]}")
    return answer.getheader("x-roundhouse-tier")


class Calm:
    """Asks at planned times. `seen` has (seconds into the window, ms from the planned time, tier)."""

    def __init__(self, address, rate, seconds, seed):
        rng = random.Random(seed)
        weights = [1 / (place + 1) for place in range(len(CALM))]
        self.plan, at = [], 0.0
        while (at := at + rng.expovariate(rate)) < seconds:
            self.plan.append((at, rng.choices(CALM, weights)[0]))
        self.address, self.seen, self.lock = address, [], threading.Lock()
        self.next = iter(self.plan)

    def run(self):
        self.begun = time.perf_counter()
        threads = [threading.Thread(target=self.ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(self.seen) != len(self.plan):
            raise SystemExit(f"{len(self.plan) - len(self.seen)} requests of calm failed")
        return self.seen

    def ask(self):
        connection = http.client.HTTPConnection(self.address, timeout=70)
        while True:
            with self.lock:
                at, target = next(self.next, (None, None))
            if at is None:
                break
            while (wait := self.begun + at - time.perf_counter()) > 0:
                time.sleep(wait)
            tier = invoke(connection, target)
            taken = (time.perf_counter() - self.begun - at) * 1e3
            self.seen.append((at, taken, tier))
        connection.close()


def scan(address, targets, rate, concurrency, stop, told):
    """In a process of its own: asks round and round until told to stop."""
    turn, lock, began, tiers = itertools.cycle(targets), threading.Lock(), time.perf_counter(), []

    def work():
        connection = http.client.HTTPConnection(address, timeout=70)
        while not stop.is_set():
            with lock:
                target, number = next(turn), len(tiers)
                tiers.append(None)
            if rate:
                wait = began + number / rate - time.perf_counter()
                if wait > 0 and stop.wait(wait):
                    break
            tiers[number] = (invoke(connection, target), time.perf_counter() - began)
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told.put([tier for tier in tiers if tier])


class Bench:
    """The models, the servers, and windows of one arm each."""

    def __init__(self, options, work):
        self.options, self.work = options, work
        self.scanned = [f"scan/m{number:03}" for number in range(options.models)]
        for target in CALM + self.scanned:
            folder = os.path.join(work, "store", target)
            os.makedirs(folder)
            for path, body in models.classifier(target, 1, ROWS, target).items():
                with open(os.path.join(folder, path), "wb") as file:
                    file.write(body)
        self.budget = None
        probe = self.server("alone", "cache")
        connection = http.client.HTTPConnection(probe.data, timeout=70)
        for target in CALM:
            invoke(connection, target)
        seen = probe.look("/admin/v1/residency")["devices"][0]
        sizes = [sum(resident["bytes"].values()) for resident in seen["residents"]]
        self.each = max(sizes)
        self.warm_disk(probe)
        # What residents share is charged once, and is not promised to anybody: room for all.
        self.budget = self.each * (len(CALM) + options.spare)
        beside = self.server("alone", "beside")
        self.warm_disk(beside)
        self.cpu = os.sysconf("SC_CLK_TCK")

    def server(self, arm, cache):
        config = os.path.join(self.work, f"{arm}-{cache}.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(SETTINGS.format(work=self.work, cache=cache))
            file.write(ARMS[arm].format(floor=self.each * len(CALM) if self.budget else 0))
            if self.budget:
                file.write(f'[memory]\nbudget = "{self.budget}B"\n')
        server = Served(self.options.binary, config, os.path.join(self.work, "log.txt"), {})
        server.start()
        return server

    def warm_disk(self, server):
        """So that loads come from disk in every window."""
        connection = http.client.HTTPConnection(server.data, timeout=70)
        for target in CALM + self.scanned:
            invoke(connection, target)
        connection.close()
        server.terminate(60)

    def used_cpu(self, server):
        with open(f"/proc/{server.process.pid}/stat", encoding="utf-8") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / self.cpu

    def window(self, arm, number):
        options = self.options
        server = self.server(arm, "cache")
        beside = self.server("alone", "beside") if arm == "elsewhere" else None
        Calm(server.data, options.rate, options.warm, f"warm {number}").run()
        stop, told, process = multiprocessing.Event(), multiprocessing.Queue(), None
        if arm != "alone":
            targets = self.scanned[:1] if arm == "one" else self.scanned
            targets = [target for target in targets for _ in range(options.repeat)]
            to = (beside or server).data
            arguments = (to, targets, options.scan_rate, options.concurrency, stop, told)
            process = multiprocessing.Process(target=scan, args=arguments)
            process.start()
            time.sleep(2)
        servers = [server, beside] if beside else [server]
        before, idle = sum(map(self.used_cpu, servers)), idle_seconds()
        evicted = server.metrics().get("roundhouse_residency_evictions_total", 0)
        seen = Calm(server.data, options.rate, options.seconds, f"round {number}").run()
        row = {"round": number, "arm": arm, "requests": len(seen),
               "misses": sum(tier != "device" for _, _, tier in seen),
               "p50_ms": quantile(seen, 0.5), "p99_ms": quantile(seen, 0.99),
               "slices_p99_ms": slices(seen, 0.99),
               "max_ms": max(taken for _, taken, _ in seen),
               "evictions": server.metrics().get("roundhouse_residency_evictions_total", 0) - evicted,
               "server_cores": (sum(map(self.used_cpu, servers)) - before) / options.seconds,
               "idle_cores": (idle_seconds() - idle) / options.seconds,
               "load_average": os.getloadavg()[0]}
        if process:
            stop.set()
            scanned = told.get()
            process.join()
            # Less what was asked after the window.
            in_window = [tier for tier, at in scanned if 2 <= at < 2 + options.seconds]
            row["scan_per_s"] = len(in_window) / options.seconds
            row["scan_loads_per_s"] = sum(tier != "device" for tier in in_window) / options.seconds
        row["slice_p99_ms"] = statistics.median(row["slices_p99_ms"])
        row["miss_ratio"] = row["misses"] / row["requests"]
        for each in servers:
            each.terminate(60)
        return row


def idle_seconds():
    with open("/proc/stat", encoding="utf-8") as file:
        fields = file.readline().split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def quantile(seen, q):
    taken = sorted(ms for _, ms, _ in seen)
    return taken[min(len(taken) - 1, int(len(taken) * q))]


def slices(seen, q):
    """The quantile of each slice of a window: what else runs on the machine comes in bursts."""
    numbers = sorted({int(at / SLICE) for at, _, _ in seen})
    of_each = ([request for request in seen if int(request[0] / SLICE) == number] for number in numbers)
    return [quantile(requests, q) for requests in of_each if len(requests) > 100]


def ratios(rows, arm, to, key):
    """Within rounds: median, least, most."""
    by_round = {row["round"]: row[key] for row in rows if row["arm"] == to}
    found = [row[key] / by_round[row["round"]] for row in rows
             if row["arm"] == arm and by_round.get(row["round"])]
    return [round(value, 3) for value in (statistics.median(found), min(found), max(found))] if found else None


def summary(rows):
    """One line per arm: medians over the rounds, ratios within them."""
    found = []
    for arm in ARMS:
        of_arm = [row for row in rows if row["arm"] == arm]
        if not of_arm:
            continue
        line = {"arm": arm, "misses": sum(row["misses"] for row in of_arm),
                "requests": sum(row["requests"] for row in of_arm)}
        for key in ("miss_ratio", "p50_ms", "p99_ms", "slice_p99_ms", "max_ms", "scan_per_s", "scan_loads_per_s",
                    "evictions", "server_cores", "idle_cores"):
            values = [row[key] for row in of_arm if key in row]
            line[key] = round(statistics.median(values), 4) if values else None
        for to in ("alone", "elsewhere"):
            for key in ("p50_ms", "p99_ms", "slice_p99_ms"):
                line[f"{key.removesuffix('_ms')}_to_{to}"] = ratios(rows, arm, to, key)
        found.append(line)
    return found


def table(lines):
    def told(value):
        return "" if value is None else f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f})"

    def number(value, digits):
        return "" if value is None else f"{value:.{digits}f}"

    text = ["| arm | calm's misses | miss ratio | p50 ms | p99 ms | max ms | p99 of slices, ms | to alone | to elsewhere"
            " | scan/s | loads of scan/s | server cores | idle cores |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for line in lines:
        text.append(
            f"| {line['arm']} | {line['misses']} of {line['requests']} | {line['miss_ratio'] * 100:.2f} %"
            f" | {line['p50_ms']:.2f} | {line['p99_ms']:.2f} | {line['max_ms']:.1f} | {line['slice_p99_ms']:.2f}"
            f" | {told(line['slice_p99_to_alone'])} | {told(line['slice_p99_to_elsewhere'])} | {number(line['scan_per_s'], 1)}"
            f" | {number(line['scan_loads_per_s'], 1)} | {line['server_cores']:.2f} | {line['idle_cores']:.2f} |")
    return "\n".join(text) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/roundhouse")
    parser.add_argument("--out", required=True)
    parser.add_argument("--name", default="neighbour", help="of the files written into --out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12, help="one window")
    parser.add_argument("--warm", type=float, default=3, help="calm by itself before each window")
    parser.add_argument("--rate", type=float, default=100, help="calm's requests a second")
    parser.add_argument("--scan-rate", type=float, default=20, help="scan's requests a second at most; 0: no limit")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=1, help="times that scan asks a model in a row")
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--spare", type=int, default=3, help="models that fit beside calm's six")
    parser.add_argument("--arms", default=",".join(ARMS))
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    work, rows, arms = tempfile.mkdtemp(prefix="neighbour-"), [], options.arms.split(",")
    try:
        bench = Bench(options, work)
        for number in range(options.rounds):
            turn = number % len(arms)
            for arm in arms[turn:] + arms[:turn]:
                rows.append(bench.window(arm, number))
                print(json.dumps(rows[-1]), flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    lines = summary(rows)
    found = {"command": " ".join(["python3", *sys.argv]), "model_bytes": bench.each,
             "budget_bytes": bench.budget, "summary": lines, "windows": rows}
    with open(os.path.join(options.out, options.name + ".json"), "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)
    with open(os.path.join(options.out, options.name + ".md"), "w", encoding="utf-8") as file:
        file.write(table(lines))
    print(table(lines))


if __name__ == "__main__":
    main()
