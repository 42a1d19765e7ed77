"""Cold loads of real checkpoints through a store at a pace: how long, and at what cost.

    python loadtest/coldload/run.py BINARY SINGLY MODELS OUT [ROUNDS]

MODELS is what make_models.py made, SINGLY the bench of the store crate, OUT a file. Each load is
of a model that is neither on disk nor in memory, by the first request for it, in a server of its
own. Disk first is the same with a model in the way that has to leave. Standard library only;
everything listens on loopback and is stopped at the end.
"""

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import started

BINARY, SINGLY, MODELS, OUT = sys.argv[1:5]
ROUNDS = int(sys.argv[5]) if len(sys.argv) > 5 else 3
HERE = os.path.dirname(os.path.abspath(__file__))
PACE = 150_000_000
MIB = 1 << 20
TICKS = os.sysconf("SC_CLK_TCK")


class Server(started.Server):
    def __init__(self, store, memory):
        self.folder = tempfile.TemporaryDirectory(prefix="coldload-", dir=SCRATCH)
        self.log = open(os.path.join(self.folder.name, "log"), "w+")
        words = ["--store", "s3://models/", "--cache-dir", self.folder.name + "/cache",
                 "--memory", memory, "--log-level", "info", "--access-log", "off"]
        env = {"ROUNDHOUSE_MEMORY_SHARE_TENSORS": "off", "ROUNDHOUSE_LOG_FORMAT": "json"}
        super().__init__(BINARY, words, store.env | env, self.log)

    def call(self, url, body=None, headers=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            url, data, {"content-type": "application/json"} | (headers or {}))
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read()), dict(answer.headers)

    def ask(self, target):
        parameters = {"max_new_tokens": 1, "do_sample": False}
        return self.call(
            f"{self.data_url}/endpoints/default/invocations",
            {"inputs": "hello", "parameters": parameters},
            {"x-amzn-sagemaker-target-model": target})

    def decisions(self, target):
        return self.call(f"{self.admin_url}/admin/v1/explain?target={target}")[0]["decisions"]

    def charged(self):
        return self.call(f"{self.admin_url}/admin/v1/residency")[0]["devices"][0]["charged_bytes"]

    def processors(self):
        """Seconds that the server has had of all processors: in all, and on those threads that
        compute steps."""
        text = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        steps, tasks = 0, f"/proc/{self.process.pid}/task"
        for task in os.listdir(tasks):
            try:
                # The pool's threads have the name of the lane that started them.
                if open(f"{tasks}/{task}/comm").read().startswith("lane-"):
                    steps += int(open(f"{tasks}/{task}/schedstat").read().split()[0]) / 1e9
            except OSError:
                pass  # It ended.
        return (int(text[11]) + int(text[12])) / TICKS, steps

    def stages(self):
        """Of the load that was logged last."""
        loaded = [line for line in open(self.log.name) if '"loaded"' in line][-1]
        return [seconds(re.search(f'"{stage}":"([^"]+)"', loaded)[1])
                for stage in ["list", "fetch", "read", "warm"]]

    def stop(self):
        super().stop()
        self.log.close()
        self.folder.cleanup()


def seconds(text):
    number, unit = re.match(r"([\d.]+)(\D+)", text).groups()
    return float(number) * {"s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}[unit]


def size(target):
    path = os.path.join(MODELS, target)
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path))


def cold(store, target, memory, pace, in_the_way):
    """One load, in a server of its own."""
    store.pace(0)
    server = Server(store, memory)
    try:
        if in_the_way:
            server.ask("small")
        os.sync()
        store.pace(pace)
        before, began = server.processors(), time.monotonic()
        if not pace:
            # Its parts: a load by the operator, then the first answer.
            server.call(f"{server.admin_url}/admin/v1/load", {"target": target})
        ready = server.processors()
        _, headers = server.ask(target)
        took, after = time.monotonic() - began, server.processors()
        assert not pace or headers["x-roundhouse-tier"] == "store", headers
        warm = ready[1] - before[1]
        costs = {"load": ready[0] - before[0] - warm, "warm": warm, "answer": after[0] - ready[0],
                 "all": after[0] - before[0]}
        loading = [it for it in server.decisions(target) if it["action"] == "loading"]
        return {"target": target, "bytes": size(target), "from": loading[-1]["from"], "took": took,
                "cpu": costs, "stages": server.stages(), "charged": server.charged()}
    finally:
        server.stop()


def median(rows, field):
    return statistics.median(row[field] for row in rows)


def show(rows, pace, out):
    gigabytes = rows[0]["bytes"] / 1e9
    took = median(rows, "took")
    stages = [statistics.median(row["stages"][at] for row in rows) for at in range(4)]
    share = f"{rows[0]['bytes'] / took / pace:5.2f}" if pace else "    -"
    print(f"{rows[0]['target']:14} {rows[0]['from']:9} {rows[0]['bytes']:>12} {took:7.3f} "
          + " ".join(f"{stage:6.3f}" for stage in stages)
          + f"  {share} ", end="", file=out)
    costs = {part: statistics.median(row["cpu"][part] for row in rows) / gigabytes
             for part in ["load", "warm", "answer", "all"]}
    told = ["     -"] * 3 + [f"{costs['all']:6.2f}"] if pace else [
        f"{cost:6.2f}" for cost in costs.values()]
    print(" ".join(told), file=out, flush=True)
    return costs


HEAD = (f"{'target':14} {'from':9} {'bytes':>12} {'answer':>7} {'list':>6} {'fetch':>6} {'read':>6} "
        f"{'warm':>6}  share  cpu s/GB: load, warm-up, answer, all")


def main(out):
    store = started.Store(MODELS)
    raw, ratios = [], []
    targets = ["f32-500m", "bf16-500m", "f32-2g"]
    try:
        # What a load takes in the books, so that a device can be made too small for two.
        needs = {target: cold(store, target, 12 << 30, 0, False)["charged"] for target in targets}
        small = cold(store, "small", 12 << 30, 0, False)["charged"]
        for pace in [PACE, 0]:
            print(f"\n{pace / 1e6:.0f} MB/s" if pace else "\nas fast as it goes", file=out)
            print(HEAD, file=out, flush=True)
            for target in targets:
                rows = {"arriving": [], "files": []}
                for _ in range(ROUNDS):
                    rows["arriving"].append(cold(store, target, needs[target] + 2 * small, pace, True))
                    rows["files"].append(cold(store, target, needs[target] + small // 2, pace, True))
                for source, of in rows.items():
                    assert {row["from"] for row in of} == {source}, of
                    raw += of
                costs = {source: show(of, pace, out) for source, of in rows.items()}
                if not pace:
                    parts = singly(store, f"{target}/model.safetensors", out)
                    ratios += [(target, source, costs[source], parts) for source in costs]
            rows = [cold(store, "packed.tar.gz", 12 << 30, pace, False) for _ in range(ROUNDS)]
            raw += rows
            show(rows, pace, out)
        print("\nprocessor seconds by those of drain, write and digest singly (and SHA-256)", file=out)
        print(f"{'target':14} {'from':9} {'load':>12} {'and warm-up':>12} {'and answer':>12}", file=out)
        for target, source, costs, (parts, with_sha256) in ratios:
            load, warm, whole = costs["load"], costs["load"] + costs["warm"], costs["all"]
            told = [f"{cost / parts:5.2f} ({cost / with_sha256:4.2f})" for cost in [load, warm, whole]]
            print(f"{target:14} {source:9} " + " ".join(told), file=out)
        print("\n" + json.dumps(raw), file=out)
    finally:
        store.stop()


def singly(store, key, out):
    """The parts one by one, in the same run: processor seconds per gigabyte, in all, and with
    SHA-256, which a fetch computes where the store has one; this one has none."""
    runs = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="coldload-", dir=SCRATCH) as folder:
            told = subprocess.run([SINGLY, store.url, "models", key, folder], check=True,
                                  capture_output=True, text=True).stdout
        runs.append(json.loads(told))
    parts = {part: statistics.median(run[part]["cpu"] / run["bytes"] * 1e9 for run in runs)
             for part in ["drain", "write", "digest", "sha256"]}
    with_sha256 = sum(parts.values())
    needed = with_sha256 - parts["sha256"]
    print("   singly, cpu s/GB: " + ", ".join(f"{part} {cost:.2f}" for part, cost in parts.items())
          + f"; in all {needed:.2f}, with SHA-256 {with_sha256:.2f}", file=out, flush=True)
    return needed, with_sha256


SCRATCH = os.environ.get("COLDLOAD_SCRATCH") or tempfile.gettempdir()
with open(OUT, "w") as file:
    main(file)
