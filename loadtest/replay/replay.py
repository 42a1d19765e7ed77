"""Alibaba's trace of 2026, many times faster, against the demo's models copied to many targets, while
the store fails in all its ways.

One server with room for a tenth of the targets in memory and half of them on disk. Requests are sent at
their planned times whatever the server does, and latency counts from then. Every answer is held against
what the model must say. Each second the server's memory, ledger, disk, files and threads are noted.
Writes OUT/report.txt, report.json, samples.csv and pictures, and exits with 1 where an answer was
wrong, an error has no fault of the store near it, memory grew beyond its bound, a budget was exceeded
or something was left in the end.

usage: replay.py --binary target/release/roundhouse --trace lora_request_trace.csv --out DIR [--minutes 30] [--speed 1000]
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import os
import queue
import random
import shutil
import sys
import tempfile
import threading
import time

import plan as plans
import report
import store as stores
from watching import Watch, looked, metrics

from served import Served

SETTINGS = """version = 1
[listen]
data = "127.0.0.1:0"
admin = "127.0.0.1:0"
[memory]
budget = "{budget}B"
share_tensors = "off"
[cache]
dir = "{work}/cache"
size = "{cache}B"
[store]
part_size = "256KiB"
stall_timeout = "2s"
max_retries = 3
[serving]
context = 512
step_tokens = 512
hold = "30s"
request_timeout = "40s"
[log]
access = "off"
level = "warn"
[[endpoint]]
name = "default"
[[endpoint.mount]]
uri = "s3://models/"
endpoint_url = "http://{bucket}"
path_style = true
region = "us-east-1"
"""
ENV = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_EC2_METADATA_DISABLED": "true"}
# For so long after a fault of the store ends an error may be its.
FELT = 6.0
REST = 15.0


class Clients:
    """Sends at the planned times; holds answers against what they must be."""

    def __init__(self, server, store, options) -> None:
        self.server, self.store, self.options = server, store, options
        self.work: queue.Queue = queue.Queue()
        self.lock = threading.Lock()
        self.rows: list[dict] = []
        self.begun = 0.0

    def run(self, planned: list[tuple[float, int, int]], begun: float) -> list[dict]:
        """What came of each; the plan's times are since `begun`."""
        self.begun, self.rows = begun, []
        workers = [threading.Thread(target=self.client, args=(n,), daemon=True)
                   for n in range(self.options.clients)]
        for worker in workers:
            worker.start()
        for at, tenant, rank in planned:
            time.sleep(max(0.0, begun + at - time.monotonic()))
            self.work.put((at, tenant, rank))
        for _ in workers:
            self.work.put(None)
        for worker in workers:
            worker.join()
        return sorted(self.rows, key=lambda row: row["at"])

    @staticmethod
    def sent(connection, target, body: dict):
        connection.request("POST", "/endpoints/default/invocations", json.dumps(body), {
            "Content-Type": "application/json", "X-Amzn-SageMaker-Target-Model": target.name})
        return connection.getresponse()

    def client(self, seed: int) -> None:
        dice, connection = random.Random(seed), http.client.HTTPConnection(self.server.data, timeout=90)
        while (item := self.work.get()) is not None:
            at, tenant, rank = item
            target = self.store.targets[tenant, rank]
            body, is_right = target.request(dice, self.options.tokens)
            row = {"at": at, "target": target.name, "tenant": tenant, "late": time.monotonic() - self.begun - at}
            try:
                is_used = connection.sock is not None
                try:
                    answer = self.sent(connection, target, body)
                except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
                    # A connection that lay idle for long is closed by any server; nothing was answered on it.
                    if not is_used:
                        raise
                    connection.close()
                    answer = self.sent(connection, target, body)
                said = answer.read()
                row |= {"status": answer.status, "tier": answer.getheader("x-roundhouse-tier"),
                        "queue_ms": answer.getheader("x-roundhouse-queue-ms"),
                        "load_ms": answer.getheader("x-roundhouse-load-ms")}
                if answer.status == 200:
                    row["kind"] = "right" if is_right(said) else "wrong"
                else:
                    row["kind"] = f"{answer.status} {answer.getheader('x-amzn-errortype') or ''}".strip()
                if row["kind"] != "right":
                    row["said"] = said[:300].decode(errors="replace")
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                row |= {"status": row.get("status", 0), "said": repr(error)[:300]}
                row["kind"] = "wrong" if row["status"] == 200 else "no answer"
                connection.close()
            row["latency"] = time.monotonic() - self.begun - at
            with self.lock:
                self.rows.append(row)
        connection.close()


def budgets(options, store, work: str) -> tuple[int, int]:
    """What a tenth of the targets take in memory, as a server measures it of one of each kind; and half
    of the store."""
    probe = Served(options.binary, configure(work, store, 1 << 33, 4 * store.bytes), os.path.join(work, "probe.log"), ENV)
    probe.start()
    try:
        kinds = {target.kind: target for target in store.targets.values()}
        for target in kinds.values():
            status, told = probe.command_on("load", target.name, 120)
            if status != 200:
                raise SystemExit(f"load {target.name}: {status} {told}")
        residents = probe.look("/admin/v1/residency")["devices"][0]["residents"]
        sizes = {it["target"]: sum(it["bytes"].values()) for it in residents}
        of_kind = {kind: sizes[target.name] for kind, target in kinds.items()}
        whole = sum(of_kind[target.kind] for target in store.targets.values())
        # The largest has to fit, with a load beside it.
        return max(int(options.room * whole), 3 * max(of_kind.values())), store.bytes // 2
    finally:
        probe.terminate(60)
        shutil.rmtree(os.path.join(work, "cache"), ignore_errors=True)


def configure(work: str, store, budget: int, cache: int) -> str:
    path = os.path.join(work, "roundhouse.toml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(SETTINGS.format(work=work, budget=budget, cache=cache, bucket=store.bucket.address))
    return path


def rest(server, begun: float) -> dict:
    """How it stands when nobody asks."""
    time.sleep(REST)
    deadline = time.monotonic() + 60
    while (sample := looked(server, begun)).get("leases", 1) or sample["waiters"] or sample["loads"]:
        if time.monotonic() > deadline:
            break
        time.sleep(1)
    return sample


def replayed(options, work: str) -> dict:
    seconds = 60 * options.minutes
    planned = plans.plan(options.trace, options.speed, seconds, options.tenants, options.models, options.skip)
    # Before anything is counted, what the traffic brings is there: threads, arenas, connections.
    warm = plans.plan(options.trace, options.speed, min(30.0, seconds / 4), options.tenants, options.models, options.skip)
    known = {(tenant, rank) for _, tenant, rank in planned + warm}
    store = stores.Store(options.tenants, options.models, known)
    budget, cache = budgets(options, store, work)
    print(f"{len(planned)} requests to {len(known)} targets of {store.bytes / 1e6:.0f} MB; memory {budget / 1e6:.0f} MB, "
          f"disk {cache / 1e6:.0f} MB", flush=True)
    server = Served(options.binary, configure(work, store, budget, cache), os.path.join(work, "log.txt"), ENV)
    server.start()
    clients = Clients(server, store, options)
    clients.run(warm, time.monotonic() + 1)
    before, counted = rest(server, time.monotonic()), metrics(server)
    begun = time.monotonic() + 1
    trouble = stores.Trouble(store.bucket, begun, begun + seconds - 10, options.pause, options.seed)
    watch = Watch(server, begun)
    if options.pause > 0:
        trouble.start()
    watch.start()
    rows = clients.run(planned, begun)
    trouble.over.set()
    store.bucket.set(None)
    took = time.monotonic() - begun
    watch.over.set()
    watch.join()
    died = server.died()
    after = rest(server, begun) if died is None else {}
    told = metrics(server)
    regret = server.look("/admin/v1/regret") if died is None else None
    status, ended = server.terminate(60) if died is None else (died, 0.0)
    for row in rows:
        row["near_fault"] = trouble.was_near(row["at"], row["at"] + row["latency"], FELT)
    return {
        "options": named(options), "requests": len(rows), "targets": len(known), "store_bytes": store.bytes,
        "budget_bytes": budget, "cache_bytes": cache, "seconds": took, "rows": rows, "samples": watch.samples,
        "windows": trouble.windows, "served_by_store": store.bucket.served, "before": before, "after": after,
        "metrics": {name: told[name] - counted.get(name, 0.0) for name in told if "_total" in name or "_count" in name},
        "regret": regret, "exit_status": status, "exit_seconds": ended, "died": died,
    }


def named(options) -> dict:
    """As they were given, files by their names: where they lie says something of one machine only."""
    return {name: os.path.basename(value.rstrip("/")) if isinstance(value, str) else value
            for name, value in vars(options).items()}


def said(options) -> str:
    return "replay.py " + " ".join(f"--{name} {value}" for name, value in named(options).items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/roundhouse")
    parser.add_argument("--trace", required=True, help="lora_request_trace.csv of alibaba/clusterdata")
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--speed", type=float, default=1000, help="time passes so many times faster")
    parser.add_argument("--skip", type=float, default=0.0, help="part of the trace to begin behind, from 0 to 1")
    parser.add_argument("--tenants", type=int, default=6, help="the trace's tenants become so many")
    parser.add_argument("--models", type=int, default=40, help="and its models so many")
    parser.add_argument("--room", type=float, default=0.1, help="part of all targets that memory has room for")
    parser.add_argument("--pause", type=float, default=25, help="seconds between two faults of the store; 0: none")
    parser.add_argument("--clients", type=int, default=256, help="requests under way at most")
    parser.add_argument("--tokens", type=int, default=16, help="new tokens of an answer at most")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    work = tempfile.mkdtemp(prefix="replay-")
    try:
        found = replayed(options, work)
        faults = report.write(options.out, found, said(options))
        if faults:
            shutil.copy(os.path.join(work, "log.txt"), os.path.join(options.out, "server.log"))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
