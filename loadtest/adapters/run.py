"""Bases with 1 to 10,000 adapters under the same rate of requests.

    python run.py BINARY STORE OUTPUT [--quick] [--rate N] [--seconds N] [--shapes NAME,...]

STORE is what make.py made. For each row a server of its own: adapters are loaded as far as the
budget holds them. Then requests come at planned times (a Poisson process, the same in all rows), each
for one adapter, uniform or by Zipf's law, and with a prompt of its own, and are measured from the
planned time. Then 32 clients ask as fast as they are answered: of that the table tells the fraction of
what the machine allows, the larger of two times: products of all tokens with the base and with an
adapter over the rate of a large multiplication, and bytes of the base and of the distinct adapters of
each step of 32 rows over the bandwidth of reading, both measured before and after each row, of which
the faster is taken. Writes
OUTPUT/adapters.json, .md and .png. Memory is what the ledger charges and, beside it, the kernel's count
of the process's anonymous pages. Needs torch, matplotlib and a C compiler; servers listen on loopback
and are stopped at the end.
"""

import argparse
import concurrent.futures
import http.client
import itertools
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import matplotlib
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import started

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PROMPT = "the shop opens at nine and "
NEW_TOKENS, LONG = 16, 48
CLIENTS = 32
MIB = 1 << 20
COUNTS = [1, 8, 64, 1000, 10_000]
QUICK = [1, 64]
# Numbers that each token is multiplied with: the base's matrices, and an adapter's.
BASES = {"base": 134_479_872, "bert": 12_582_912}
SHAPES = {"all16": ("base", 4_884_480), "qv16": ("base", 921_600), "qv4": ("base", 230_400), "bert16": ("bert", 131_072)}
# Requests of an encoder are so many times as frequent.
ENCODERS = 20


class Server(started.Server):
    def __init__(self, binary, store, budget):
        self.cache = tempfile.TemporaryDirectory(prefix="adapters-cache-")
        words = ["--store", f"file://{store}/", "--cache-dir", self.cache.name, "--cache-size", "3GiB",
                 "--memory", budget, "--context", "256", "--kv-sequences", "32", "--access-log", "off"]
        super().__init__(binary, words, {
            "ROUNDHOUSE_STORE_SETTLE": "1ms", "ROUNDHOUSE_STORE_CATALOGUE_TTL": "1h",
            "ROUNDHOUSE_RESIDENCY_REFRESH_EVERY": "1h"})
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

    def ask(self, target, number, tokens=NEW_TOKENS):
        """With a prompt that the number makes its own."""
        body = {"inputs": f"{number:06d} {PROMPT}"}
        if not target.startswith("bert"):
            body["parameters"] = {"max_new_tokens": tokens, "do_sample": False, "ignore_eos_token": True}
        header = {"x-amzn-sagemaker-target-model": target}
        return self.call(self.data, "POST", "/endpoints/default/invocations", body, header)

    def residency(self):
        return json.loads(self.call(self.admin, "GET", "/admin/v1/residency")[2])["devices"][0]

    def stop(self):
        super().stop()
        self.cache.cleanup()


def plan(count, law, rate, seconds):
    """Times and adapters' numbers, from one seed."""
    dice, at, planned, pick = random.Random(7), 0.0, [], picker(count, law)
    while (at := at + dice.expovariate(rate)) < seconds:
        planned.append((at, pick(dice)))
    return planned


def picker(count, law):
    total = list(itertools.accumulate(1 / (rank + 1) if law == "zipf" else 1 for rank in range(count)))
    return lambda dice: dice.choices(range(count), cum_weights=total)[0]


def open_loop(server, targets, planned):
    """Status, seconds from the planned time, and tier, of each request."""
    began = time.monotonic() + 0.1
    done, lock = [], threading.Lock()

    def one(order, at, number):
        status, headers, _ = server.ask(targets[number], order)
        with lock:
            done.append((status, time.monotonic() - began - at, headers["x-roundhouse-tier"]))

    with concurrent.futures.ThreadPoolExecutor(256) as pool:
        for order, (at, number) in enumerate(planned):
            time.sleep(max(0.0, began + at - time.monotonic()))
            pool.submit(one, order, at, number)
    return done, time.monotonic() - began


def closed_loop(server, targets, law, seconds):
    """Answers a second to clients that ask without a pause, and how many there were."""
    numbers = itertools.count(100_000)
    ends = time.monotonic() + seconds

    def client(seed):
        dice, pick, answered = random.Random(seed), picker(len(targets), law), 0
        while time.monotonic() < ends:
            answered += server.ask(targets[pick(dice)], next(numbers), LONG)[0] == 200
        return answered

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        answered = sum(pool.map(client, range(CLIENTS)))
    return answered / (time.monotonic() - began)


def bound(shape, targets, law, size, roofs):
    """Seconds that a closed loop's request takes at least."""
    beneath, own = SHAPES[shape]
    read, flops = roofs
    # Bytes in the prompt are tokens, or words with one at either end.
    prompt = 7 + len(PROMPT) if beneath == "base" else 9
    decoded = LONG if beneath == "base" else 0
    products = 2 * (prompt + decoded) * (BASES[beneath] + own)
    pick, dice = picker(len(targets), law), random.Random(11)
    distinct = sum(len({pick(dice) for _ in range(CLIENTS)}) for _ in range(200)) / 200
    steps = max(decoded, 1) / CLIENTS
    return max(products / flops, steps * (2 * BASES[beneath] + distinct * size) / read)


def measure(binary, store, shape, count, law, budget, options):
    before = measured_roofs()
    server = Server(binary, store, budget)
    targets = [f"{shape}/{number}" for number in range(count)]
    encodes = SHAPES[shape][0] == "bert"
    rate = options.rate * (ENCODERS if encodes else 1)
    try:
        if server.load(SHAPES[shape][0]) != 200:
            raise SystemExit("the base was not loaded")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            loading = time.monotonic()
            statuses = list(pool.map(server.load, targets))
            loading = time.monotonic() - loading
        if set(statuses) != {200}:
            raise SystemExit(f"{shape}: loads answered {set(statuses)}")
        # What is asked of the base first is not measured.
        list(map(lambda number: server.ask(targets[0], 900_000 + number), range(3)))
        planned = plan(count, law, rate, options.seconds)
        done, lasted = open_loop(server, targets, planned)
        device = server.residency()
        anonymous = server.anonymous()
        answers = closed_loop(server, targets, law, options.seconds / 3)
        roofs = [max(both) for both in zip(before, measured_roofs())]
        residents = [it for it in device["residents"] if it["kind"] == "adapter"]
        right = [took for status, took, _ in done if status == 200]
        took = sorted(right) or [float("nan")]
        hits = sum(tier == "device" for status, _, tier in done if status == 200)
        return {
            "shape": shape, "adapters": count, "law": law, "rate": rate,
            "requests": len(planned), "refused": len(planned) - len(right),
            "answers_per_second": len(right) / lasted,
            "p50_ms": statistics.median(took) * 1e3,
            "p99_ms": took[min(len(took) - 1, int(len(took) * 0.99))] * 1e3,
            "hit_ratio": hits / max(1, len(right)),
            "most_per_second": answers,
            "bytes_a_second": roofs[0], "flops": roofs[1],
            "of_the_bound": answers * bound(shape, targets, law, bytes_of(store, shape), roofs),
            "resident": len(residents),
            "resident_bytes": sum(sum(it["bytes"].values()) for it in residents),
            "charged_bytes": device["charged_bytes"], "budget_bytes": device["budget_bytes"],
            "anonymous_bytes": anonymous,
            "loads_per_second": count / loading,
        }
    finally:
        server.stop()


def measured_roofs():
    """Bytes a second read from memory, and operations a second of a large multiplication."""
    if not ROOFS:
        ROOFS.append(tempfile.TemporaryDirectory())
        source = pathlib.Path(__file__).parent.parent / "generation" / "roofs.c"
        subprocess.run(["cc", "-O3", "-march=native", "-fopenmp", source, "-o", f"{ROOFS[0].name}/roofs"], check=True)
    read = subprocess.run([f"{ROOFS[0].name}/roofs"], check=True, capture_output=True, text=True).stdout
    left, right, best = torch.randn(512, 2048), torch.randn(2048, 8192), float("inf")
    for _ in range(5):
        began = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - began)
    return float(read.split()[0]), 2 * 512 * 2048 * 8192 / best


ROOFS = []


def bytes_of(store, shape):
    return (store / shape / "0" / "adapter_model.safetensors").stat().st_size


def available() -> int:
    """Bytes that programs can have: free ones, and those that the page cache would give up."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def rows(store, options):
    """What is measured: every count with a budget that holds all, and one with 2 GiB."""
    shapes = [shape for shape in options.shapes.split(",") if (store / shape).exists()]
    wanted = [(shape, count) for shape in shapes for count in (QUICK if options.quick else COUNTS)
              if (store / shape / str(count - 1)).exists()]
    free = available()
    for shape, count in wanted:
        # 2 GiB for base, KV pool and workspace, and a tenth over the adapters' files.
        need = 2 * 1024 * MIB + count * bytes_of(store, shape) * 11 // 10
        if need > free * 9 // 10:
            print(f"left out: {count} of {shape} need {need / 1024 / MIB:.1f} GiB", flush=True)
            continue
        for law in ("uniform", "zipf") if count > 1 else ("uniform",):
            yield shape, count, law, f"{need}B"
    small = [row for row in wanted if row[0].startswith("qv")]
    for law in ("zipf", "uniform") if small else ():
        yield *max(small, key=lambda row: row[1]), law, "2GiB"


def table(found, options):
    lines = [
        f"{options.rate:g} requests/s planned for {options.seconds:g} s ({ENCODERS} times as many of the encoder), "
        f"{len(PROMPT) + 7} prompt tokens, {NEW_TOKENS} new tokens each; then {CLIENTS} clients without a pause, "
        f"{LONG} new tokens; {os.cpu_count()} cores",
        "",
        "| shape | adapters | law | budget | answers/s | p50 ms | p99 ms | p99 by one adapter's | hits | refused | at most, answers/s "
        "| of the bound | resident | adapters' MiB | charged MiB | witness MiB | loads/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    alone = {row["shape"]: row["p99_ms"] for row in found if row["adapters"] == 1}
    for row in found:
        budget = f"{row['budget_bytes'] / 1024 / MIB:.1f} GiB"
        by_one = f"{row['p99_ms'] / alone[row['shape']]:.2f}" if row["shape"] in alone else ""
        lines.append(
            f"| {row['shape']} | {row['adapters']} | {row['law']} | {budget} | "
            f"{row['answers_per_second']:.2f} | {row['p50_ms']:.0f} | {row['p99_ms']:.0f} | {by_one} | "
            f"{row['hit_ratio']:.3f} | {row['refused']} | {row['most_per_second']:.2f} | {row['of_the_bound']:.2f} | "
            f"{row['resident']} | {row['resident_bytes'] / MIB:.0f} | {row['charged_bytes'] / MIB:.0f} | "
            f"{row['anonymous_bytes'] / MIB:.0f} | {row['loads_per_second']:.1f} |")
    return "\n".join(lines) + "\n"


def picture(found, path):
    """Latency and pace by count, one line a shape and law."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    whole = [row for row in found if row["resident"] == row["adapters"]]
    for at, shape in enumerate(SHAPES):
        for law, style in [("uniform", "-"), ("zipf", "--")]:
            of = [row for row in whole if row["shape"] == shape and (row["law"] == law or row["adapters"] == 1)]
            if not of:
                continue
            counts = [row["adapters"] for row in of]
            color = f"C{at}"
            left.plot(counts, [row["p99_ms"] for row in of], style, color=color, marker="o", label=f"{shape}, {law}")
            most = of[0]["most_per_second"]
            right.plot(counts, [row["most_per_second"] / most for row in of], style, color=color, marker="o")
    left.set(xscale="log", yscale="log", xlabel="adapters", ylabel="p99, ms", title="Latency at the same rate")
    right.set(xscale="log", xlabel="adapters", ylabel="by that of one adapter", title="Answers a second to 32 clients")
    right.set_ylim(bottom=0)
    left.legend(fontsize=8, loc="center left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("store", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rate", type=float, default=3.0)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--shapes", default=",".join(SHAPES))
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
        picture(found, options.output / "adapters.png")


if __name__ == "__main__":
    main()
