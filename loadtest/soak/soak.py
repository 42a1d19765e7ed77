"""Random arrivals, lengths, cancellations and preemptions against one server, for as long as wanted.

    python loadtest/soak/soak.py BINARY OUT [--seconds 1800] [--clients 16] [--seed 1]

Makes small random checkpoints, serves them within a budget in which KV pools grow and shrink, are
squeezed for loads and run out, and holds every greedy answer against the same request alone. In the
end nothing may be left: no block, no byte of the ledger, no page. Writes OUT/soak.json and exits
with 1 where something was wrong.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import models
import started

MIB = 1 << 20
# The first three are always asked for, the last now and then: its load squeezes the others' pools.
NAMES = ["often", "second", "third", "seldom"]
SHARES = [0.6, 0.25, 0.15]
PROMPTS = 40
ANSWER = 120
# A run may leave its reference only where the reference's two likeliest tokens are this close, and
# in this share of tokens at most: kernels choose paths by shape, so bits differ.
NEAR, LEAVES = 1e-3, 1e-3
# What the process may hold more in the end, by the system's count of pages: threads' arenas.
PAGES = 8 * MIB


class Server(started.Server):
    def __init__(self, binary: str, store: str, folder: str, memory: int) -> None:
        config = os.path.join(folder, "soak.toml")
        with open(config, "w", encoding="utf-8") as out:
            out.write(f"version = 1\n[serving]\ncontext = {models.CONTEXT}\nkv_sequences = 8\n"
                      "step_tokens = 128\nmax_running = 32\n"
                      "[memory]\nwitness_every = \"1s\"\n")
        self.log = open(os.path.join(folder, "server.log"), "wb")
        super().__init__(binary, [
            "--config", config, "--store", f"file://{store}/", "--cache-dir", os.path.join(folder, "cache"),
            "--memory", memory, "--access-log", "off"], log=self.log)

    def look(self, path: str):
        return urllib.request.urlopen(f"{self.admin_url}{path}", timeout=60).read()

    def residency(self) -> dict:
        return json.loads(self.look("/admin/v1/residency"))

    def command(self, command: str, target: str) -> None:
        body = json.dumps({"endpoint": "default", "target": target}).encode()
        request = urllib.request.Request(f"{self.admin_url}/admin/v1/{command}", body,
                                         {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=120).read()

    def metrics(self) -> dict[str, float]:
        sums: dict[str, float] = collections.defaultdict(float)
        for line in self.look("/metrics").decode().splitlines():
            if not line.startswith("#") and " " in line:
                series, value = line.rsplit(" ", 1)
                sums[series.split("{")[0]] += float(value)
        return sums


def complete(server: Server, model: str, prompt: str, tokens: int, leave_after: int | None = None):
    """A greedy answer as (tokens, gaps between the two likeliest); of one that is left before its
    end what came until then."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "logprobs": 4, "stream": True, "ignore_eos": True,
            "logit_bias": {str(models.BYTES): -100, str(models.BYTES + 1): -100}}
    url = urllib.parse.urlsplit(server.data_url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=300)
    came, gaps, is_whole = [], [], False
    try:
        connection.request("POST", "/v1/completions", json.dumps(body),
                           {"content-type": "application/json"})
        if leave_after == 0:
            return came, gaps
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.read()[:300]!r}")
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                is_whole = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            for choice in event["choices"]:
                told = choice.get("logprobs") or {}
                came += told.get("tokens", [])
                for top in told.get("top_logprobs", []):
                    # Begin and end are never chosen.
                    told_of = (value for text, value in top.items() if text not in ("<s>", "</s>"))
                    best = sorted(told_of, reverse=True)
                    gaps.append(best[0] - best[1] if len(best) > 1 else float("inf"))
            if leave_after is not None and len(came) >= leave_after:
                return came, gaps
    finally:
        connection.close()
    if not is_whole:
        raise RuntimeError("the stream ended without its end")
    return came, gaps


class Soak:
    def __init__(self, server: Server, seed: int) -> None:
        dice = random.Random(seed)
        self.server = server
        self.lock = threading.Lock()
        self.counts: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self.peak: collections.Counter[str] = collections.Counter()
        self.over = threading.Event()
        letters = "abcdefghijklmnopqrstuvwxyz .,"
        # Some begin alike, so that prefixes are found.
        heads = ["".join(dice.choices(letters, k=dice.randint(16, 120))) for _ in range(6)]
        self.prompts = []
        for _ in range(PROMPTS):
            head = dice.choice(heads) if dice.random() < 0.5 else ""
            most = models.CONTEXT - ANSWER - len(head)
            length = min(most, max(1, int(dice.lognormvariate(4.2, 1.0))))
            self.prompts.append(head + "".join(dice.choices(letters, k=length)))
        self.alone: dict[tuple[str, int], tuple[list[str], list[float]]] = {}

    def references(self) -> None:
        for name in NAMES:
            for index, prompt in enumerate(self.prompts):
                came = complete(self.server, name, prompt, ANSWER)
                if len(came[0]) != ANSWER or len(came[1]) != ANSWER:
                    raise SystemExit(f"{name} answered {len(came[0])} tokens alone")
                self.alone[name, index] = came

    def ask(self, dice: random.Random) -> None:
        name = dice.choices(NAMES[:3], SHARES)[0] if dice.random() < 0.995 else NAMES[3]
        index, tokens = dice.randrange(PROMPTS), dice.randint(1, ANSWER)
        leave_after = dice.randrange(tokens) if dice.random() < 0.25 else None
        try:
            came, _ = complete(self.server, name, self.prompts[index], tokens, leave_after)
        except (OSError, RuntimeError, http.client.HTTPException, ValueError) as error:
            with self.lock:
                self.faults.append(f"{name} {index}: {error!r}")
            return
        with self.lock:
            self.counts["left" if leave_after is not None else "answered"] += 1
            self.counts["tokens"] += len(came)
            self.compare(name, index, came, tokens if leave_after is None else len(came))

    def compare(self, name: str, index: int, came: list[str], tokens: int) -> None:
        wanted, gaps = self.alone[name, index]
        if len(came) != tokens:
            self.faults.append(f"{name} {index}: {len(came)} tokens of {tokens}")
        for at, (got, want) in enumerate(zip(came, wanted)):
            if got != want:
                self.counts["near ties"] += 1
                if gaps[at] >= NEAR:
                    self.faults.append(f"{name} {index}: token {at} is {got!r}, alone {want!r} "
                                       f"by {gaps[at]:.4f}")
                return

    def client(self, seed: int) -> None:
        dice = random.Random(seed)
        while not self.over.is_set():
            # Bursts and pauses.
            if dice.random() < 0.1:
                self.over.wait(dice.expovariate(0.7))
            self.ask(dice)

    def watch(self) -> None:
        """Invariants that hold at every instant."""
        while not self.over.wait(0.2):
            device = self.server.residency()["devices"][0]
            held = device["charged_bytes"] + device["reserved_bytes"]
            self.peak["held"] = max(self.peak["held"], held)
            if held > device["budget_bytes"]:
                self.faults.append(f"{held} held of {device['budget_bytes']}")
            for resident in device["residents"]:
                kv = (resident["serves"] or {}).get("kv")
                if kv:
                    name = f"kv of {resident['target']}"
                    self.peak[name] = max(self.peak[name], resident["bytes"]["kv"])
            self.counts["looks"] += 1

    def run(self, seconds: float, clients: int, seed: int) -> None:
        self.over.clear()
        workers = [threading.Thread(target=self.client, args=(seed * 1000 + n,))
                   for n in range(clients)]
        workers.append(threading.Thread(target=self.watch))
        for worker in workers:
            worker.start()
        time.sleep(seconds)
        self.over.set()
        for worker in workers:
            worker.join()

    def rest(self) -> dict:
        """How everything stands when nobody asks: the same three residents, pools at their floors."""
        for name in NAMES[:3]:
            self.server.command("load", name)
        if any(it["target"] == NAMES[3] for it in self.residents()):
            self.server.command("unload", NAMES[3])
        # A load that was waited for may have sent one of the three away again.
        for name in NAMES[:3]:
            self.server.command("load", name)
        deadline = time.monotonic() + 60
        while not all(self.is_idle(it) for it in self.residents()):
            if time.monotonic() > deadline:
                self.faults.append(f"blocks or leases stay: {self.residents()}")
                break
            time.sleep(0.2)
        time.sleep(6)  # several looks of the witness
        shown, metrics = self.server.residency(), self.server.metrics()
        memory = shown["memory"]
        return {
            "charged_bytes": shown["devices"][0]["charged_bytes"],
            "reserved_bytes": shown["devices"][0]["reserved_bytes"],
            "residents": {it["target"]: it["bytes"] for it in shown["devices"][0]["residents"]},
            "expected_bytes": memory["expected_bytes"],
            "untouched_bytes": memory["untouched_bytes"],
            "pages_bytes": self.server.anonymous(),
            "blocks_in_use": metrics["roundhouse_engine_kv_blocks_taken_total"]
            - metrics["roundhouse_engine_kv_blocks_freed_total"],
            "sequences_under_way": metrics["roundhouse_engine_sequences_submitted_total"]
            - metrics["roundhouse_engine_sequences_ended_total"],
            "preemptions": metrics["roundhouse_engine_preemptions_total"],
            "evictions": metrics["roundhouse_residency_evictions_total"],
            "kv_granted_bytes": metrics["roundhouse_residency_kv_granted_bytes_total"],
            "kv_returned_bytes": metrics["roundhouse_residency_kv_returned_bytes_total"],
        }

    def residents(self) -> list[dict]:
        return self.server.residency()["devices"][0]["residents"]

    @staticmethod
    def is_idle(resident: dict) -> bool:
        kv = resident["serves"]["kv"]
        return resident["leases"] == 0 and kv["used"]["blocks"] == 0 and kv["now"] == kv["floor"]

    def judge(self, before: dict, after: dict) -> None:
        # The host parts of one that was loaded again are measured anew, some hundred bytes apart.
        def lasting(found: dict) -> dict:
            return {name: {**parts, "host": 0} for name, parts in found["residents"].items()}

        for what, was, now in [("residents", lasting(before), lasting(after)),
                               ("reserved_bytes", before["reserved_bytes"], after["reserved_bytes"])]:
            if was != now:
                self.faults.append(f"{what}: {was} before, {now} after")
        sums = [sum(sum(it.values()) for it in at["residents"].values()) for at in (before, after)]
        if [before["charged_bytes"], after["charged_bytes"]] != sums:
            self.faults.append(f"charged {before['charged_bytes']}, {after['charged_bytes']}: {sums}")
        for what in ["blocks_in_use", "sequences_under_way"]:
            if after[what] != 0:
                self.faults.append(f"{what}: {after[what]} when nobody asks")
        if after["kv_granted_bytes"] <= before["kv_granted_bytes"]:
            self.faults.append("no pool grew")
        if after["preemptions"] <= before["preemptions"]:
            self.faults.append("nobody was preempted")
        off = [it["pages_bytes"] - it["expected_bytes"] for it in (before, after)]
        if off[1] - off[0] > PAGES:
            self.faults.append(f"pages beyond what is expected: {off[0]} before, {off[1]} after")
        if self.counts["near ties"] > LEAVES * self.counts["tokens"]:
            self.faults.append(f"{self.counts['near ties']} answers left their references")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("binary")
    parser.add_argument("out")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="soak-")
    store = os.path.join(folder, "store")
    models.store(store, NAMES)
    # What three of them take, and room for a part of what their pools may grow to.
    probe = Server(asked.binary, store, folder, 1 << 30)
    for name in NAMES[:3]:
        probe.command("load", name)
    charged = probe.residency()["devices"][0]["charged_bytes"]
    probe.stop()
    budget = charged + 9 * MIB
    server = Server(asked.binary, store, folder, budget)
    try:
        soak = Soak(server, asked.seed)
        soak.references()
        # Threads, arenas and caches that the traffic brings are there before the first count.
        soak.run(min(20.0, asked.seconds / 4), asked.clients, asked.seed + 1)
        before = soak.rest()
        begun = time.time()
        soak.run(asked.seconds, asked.clients, asked.seed + 2)
        took = time.time() - begun
        after = soak.rest()
        soak.judge(before, after)
    finally:
        server.stop()
    found = {
        "seconds": round(took), "clients": asked.clients, "seed": asked.seed,
        "budget_bytes": budget, "charged_at_floors_bytes": charged, "counts": soak.counts,
        "peaks": soak.peak, "before": before, "after": after, "faults": soak.faults[:50],
    }
    os.makedirs(asked.out, exist_ok=True)
    with open(os.path.join(asked.out, "soak.json"), "w", encoding="utf-8") as out:
        json.dump(found, out, indent=1)
        out.write("\n")
    shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found, indent=1))
    sys.exit(bool(soak.faults))


if __name__ == "__main__":
    main()
