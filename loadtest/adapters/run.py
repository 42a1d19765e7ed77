"""One base with 1 to 10,000 adapters under the same rate of requests.

    python run.py BINARY STORE OUTPUT [--quick] [--rate N] [--seconds N]

STORE is what make.py made. For each row a server of its own: adapters are loaded as far as the
budget holds them, then requests come at planned times (a Poisson process, the same in all rows),
each for one adapter, uniform or by Zipf's law, and are measured from the planned time. Writes
OUTPUT/adapters.json and OUTPUT/adapters.md. Standard library only; servers listen on loopback and
are stopped at the end. Memory is what the ledger charges and, beside it, the kernel's count of the
process's anonymous pages.
"""

import argparse
import concurrent.futures
import http.client
import itertools
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.parse

PROMPT = "The shop opens at nine and "
NEW_TOKENS = 16
MIB = 1 << 20
# Adapter bytes per number, f32 base and KV pool included in what is left.
ROWS = [
    ("all16", 1), ("all16", 8), ("all16", 64), ("all16", 1000),
    ("qv16", 1), ("qv16", 8), ("qv16", 64), ("qv16", 1000),
    ("qv4", 1), ("qv4", 8), ("qv4", 64), ("qv4", 1000), ("qv4", 10_000),
]
QUICK = [("all16", 1), ("all16", 8), ("qv4", 1), ("qv4", 64)]


class Server:
    def __init__(self, binary, store, budget):
        self.cache = tempfile.TemporaryDirectory(prefix="adapters-cache-")
        self.process = subprocess.Popen(
            [binary, "serve", "--store", f"file://{store}/", "--cache-dir", self.cache.name,
             "--cache-size", "3GiB", "--memory", budget, "--context", "256", "--kv-sequences", "32",
             "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--access-log", "off"],
            env=os.environ | {"ROUNDHOUSE_STORE_SETTLE": "1ms", "ROUNDHOUSE_STORE_CATALOGUE_TTL": "1h",
                              "ROUNDHOUSE_RESIDENCY_REFRESH_EVERY": "1h"},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        found = {}
        while len(found) < 2:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("the server ended")
            if match := re.match(r"(listening|admin) on http://(\S+)", line):
                found[match[1]] = match[2].strip()
        self.data, self.admin = found["listening"], found["admin"]
        self.connections = threading.local()

    def call(self, address, method, path, body=None, headers=None):
        """Status, headers and body, over a connection of this thread's own."""
        kept = self.connections.__dict__.setdefault("by_address", {})
        data = None if body is None else json.dumps(body)
        headers = {"content-type": "application/json"} | (headers or {})
        for fresh in (False, True):
            if fresh or address not in kept:
                kept[address] = http.client.HTTPConnection(address, timeout=600)
            try:
                kept[address].request(method, path, data, headers)
                answer = kept[address].getresponse()
                return answer.status, answer.headers, answer.read()
            except (ConnectionError, http.client.HTTPException):
                if fresh:
                    raise

    def load(self, target):
        body = {"endpoint": "default", "target": target}
        return self.call(self.admin, "POST", "/admin/v1/load", body)[0]

    def ask(self, target):
        body = {"inputs": PROMPT, "parameters": {
            "max_new_tokens": NEW_TOKENS, "do_sample": False, "ignore_eos_token": True}}
        header = {"x-amzn-sagemaker-target-model": target}
        return self.call(self.data, "POST", "/endpoints/default/invocations", body, header)

    def residency(self):
        return json.loads(self.call(self.admin, "GET", "/admin/v1/residency")[2])["devices"][0]

    def anonymous(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Anonymous:\s+(\d+) kB", text, re.M)[1]) << 10

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.cache.cleanup()


def plan(count, law, rate, seconds):
    """Times and adapters' numbers, from one seed."""
    dice, at, planned = random.Random(7), 0.0, []
    weights = [1 / (rank + 1) if law == "zipf" else 1 for rank in range(count)]
    total = list(itertools.accumulate(weights))
    while (at := at + dice.expovariate(rate)) < seconds:
        planned.append((at, dice.choices(range(count), cum_weights=total)[0]))
    return planned


def measure(binary, store, shape, count, law, budget, options):
    server = Server(binary, store, budget)
    targets = [f"{shape}/{number}" for number in range(count)]
    try:
        if server.load("base") != 200:
            raise SystemExit("the base was not loaded")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            loading = time.monotonic()
            statuses = list(pool.map(server.load, targets))
            loading = time.monotonic() - loading
        if set(statuses) != {200}:
            raise SystemExit(f"{shape}: loads answered {set(statuses)}")
        # What is asked of the base first is not measured.
        list(map(lambda _: server.ask(targets[0]), range(3)))
        planned = plan(count, law, options.rate, options.seconds)
        began = time.monotonic() + 0.1
        done, lock = [], threading.Lock()

        def one(at, number):
            status, headers, _ = server.ask(targets[number])
            with lock:
                done.append((status, time.monotonic() - began - at, headers["x-roundhouse-tier"]))

        with concurrent.futures.ThreadPoolExecutor(256) as pool:
            for at, number in planned:
                time.sleep(max(0.0, began + at - time.monotonic()))
                pool.submit(one, at, number)
        lasted = time.monotonic() - began
        device = server.residency()
        residents = [it for it in device["residents"] if it["kind"] == "adapter"]
        right = [took for status, took, _ in done if status == 200]
        took = sorted(right) or [float("nan")]
        hits = sum(tier == "device" for status, _, tier in done if status == 200)
        return {
            "shape": shape, "adapters": count, "law": law, "budget": budget,
            "requests": len(planned), "refused": len(planned) - len(right),
            "answers_per_second": len(right) / lasted,
            "tokens_per_second": len(right) * NEW_TOKENS / lasted,
            "p50_ms": statistics.median(took) * 1e3,
            "p99_ms": took[min(len(took) - 1, int(len(took) * 0.99))] * 1e3,
            "hit_ratio": hits / max(1, len(right)),
            "resident": len(residents),
            "resident_bytes": sum(sum(it["bytes"].values()) for it in residents),
            "charged_bytes": device["charged_bytes"], "budget_bytes": device["budget_bytes"],
            "anonymous_bytes": server.anonymous(),
            "loads_per_second": count / loading,
        }
    finally:
        server.stop()


def bytes_of(store, shape):
    return (store / shape / "0" / "adapter_model.safetensors").stat().st_size


def available() -> int:
    """Bytes that programs can have: free ones, and those that the page cache would give up."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def rows(store, options):
    """What is measured: every count with a budget that holds all, and one with 2 GiB."""
    wanted = [row for row in (QUICK if options.quick else ROWS)
              if (store / row[0] / str(row[1] - 1)).exists()]
    free = available()
    for shape, count in wanted:
        # 2 GiB for base, KV pool and workspace, and a tenth over the adapters' files.
        need = 2 * 1024 * MIB + count * bytes_of(store, shape) * 11 // 10
        if need > free * 9 // 10:
            print(f"left out: {count} of {shape} need {need / 1024 / MIB:.1f} GiB", flush=True)
            continue
        for law in ("uniform", "zipf") if count > 1 else ("uniform",):
            yield shape, count, law, f"{need}B"
    shape, count = max(wanted, key=lambda row: row[1])
    yield shape, count, "zipf", "2GiB"


def table(found, options):
    lines = [
        f"{options.rate:g} requests/s planned for {options.seconds:g} s, {len(PROMPT)} prompt tokens, "
        f"{NEW_TOKENS} new tokens each, {os.cpu_count()} cores",
        "",
        "| shape | adapters | law | budget | answers/s | tokens/s | p50 ms | p99 ms | hits | refused | resident | adapters' MiB | charged MiB | witness MiB | loads/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        budget = f"{row['budget_bytes'] / 1024 / MIB:.1f} GiB"
        lines.append(
            f"| {row['shape']} | {row['adapters']} | {row['law']} | {budget} | "
            f"{row['answers_per_second']:.2f} | {row['tokens_per_second']:.1f} | {row['p50_ms']:.0f} | "
            f"{row['p99_ms']:.0f} | {row['hit_ratio']:.3f} | {row['refused']} | {row['resident']} | "
            f"{row['resident_bytes'] / MIB:.0f} | {row['charged_bytes'] / MIB:.0f} | "
            f"{row['anonymous_bytes'] / MIB:.0f} | {row['loads_per_second']:.1f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("store", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rate", type=float, default=3.0)
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    options.seconds = options.seconds or (15.0 if options.quick else 120.0)
    store = options.store.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    found = []
    for shape, count, law, budget in rows(store, options):
        found.append(measure(options.binary, store, shape, count, law, budget, options))
        print(json.dumps(found[-1]), flush=True)
        (options.output / "adapters.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.output / "adapters.md").write_text(table(found, options))


if __name__ == "__main__":
    main()
