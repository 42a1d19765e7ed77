"""Who asks: clients that judge every answer, ones that leave, and one that watches the ledger."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections import Counter

import models
from oracle import Target
from served import ask
from world import HOLD, LIMIT, MARGIN, World

BODY = json.dumps({"inputs": "hello world one two three"})
PATH = "/endpoints/default/invocations"


def invoke(world: World, target: Target, kind: str) -> tuple[int, str | None]:
    """Asks one model, judges what comes back; its status and signature."""
    begun = time.monotonic()
    headers = {"X-Amzn-SageMaker-Target-Model": target.name}
    status, body, got = ask(world.served.data, "POST", PATH, BODY, headers, HOLD + MARGIN)
    ended = time.monotonic()
    stopped = world.served.was_stopped(begun, ended)
    request = {"begun": round(begun - world.begun, 3), "took_s": round(ended - begun, 3),
               "status": status, "body": body[:300].decode(errors="replace"),
               "version": got.get("x-roundhouse-version"), "tier": got.get("x-roundhouse-tier")}
    if status == 0:
        refused = stopped in ("kill", "start", "died")
        # An orderly end may close its door before a connection that comes with it.
        refused = refused or (stopped == "term" and begun > world.served.lives[-1][0] - 0.5
                              and not was_taken(world, begun))
        if refused:
            world.count(f"{kind}: unanswered while the server was down")
        else:
            world.violation("a request was not answered", target, request=request, stopped=stopped)
        return 0, None
    world.count(f"{kind}: {status}")
    world.took(ended - begun, got.get("x-roundhouse-tier", "none") if status == 200 else str(status))
    if status == 200:
        said = models.said(body)
        wrong = world.oracle.judge(target, begun, ended, said,
                                   got.get("x-roundhouse-version", ""), got.get("x-roundhouse-tier", ""))
        if wrong:
            world.violation(wrong, target, request=request)
        return 200, said
    if status == 500:
        world.violation("an internal failure", target, request=request)
    elif status == 400 and world.oracle.must_serve(target, begun, ended):
        world.violation("a model that is there was denied", target, request=request)
    elif world.oracle.must_serve(target, begun, ended):
        world.count(f"{kind}: {status} from a whole model in health")
        with world.lock:
            world.refusals[f"{status} {body[:160].decode(errors='replace')}"] += 1
    return status, None


def was_taken(world: World, begun: float) -> bool:
    """Whether a request began well before an orderly stop, so that it must be answered."""
    ends = [life[1] for life in world.served.lives if life[2] == "term" and life[1] is not None]
    return any(begun + 0.5 < end < begun + LIMIT for end in ends[-2:])


class Clients:
    """Threads that ask until they are told to stop; paused in calm phases."""

    def __init__(self, world: World, count: int) -> None:
        self.world = world
        self.over = threading.Event()
        self.going = threading.Event()
        self.under_way = 0
        self.hot: list[Target] = []
        self.threads = [threading.Thread(target=self.run, args=(number,), daemon=True)
                        for number in range(count)]
        self.threads.append(threading.Thread(target=self.leave, daemon=True))
        for thread in self.threads:
            thread.start()

    def choose(self, rng: random.Random) -> Target:
        world = self.world
        if rng.random() < 0.02:
            return rng.choice(world.halves)
        if self.hot and rng.random() < 0.6:
            return rng.choice(self.hot)
        return rng.choice(world.targets)

    def run(self, number: int) -> None:
        rng = random.Random(f"{self.world.options.seed}:{number}")
        while not self.over.is_set():
            if not self.going.wait(0.2):
                continue
            with self.world.lock:
                self.under_way += 1
            try:
                invoke(self.world, self.choose(rng), "asked")
            except Exception as error:  # A fault of this program must not look like silence.
                self.world.violation(f"the client failed: {error!r}")
            finally:
                with self.world.lock:
                    self.under_way -= 1
            time.sleep(rng.expovariate(20.0))

    def leave(self) -> None:
        """Asks and is gone before the answer."""
        rng = random.Random(f"{self.world.options.seed}:leaver")
        while not self.over.is_set():
            if not self.going.wait(0.2):
                continue
            target = self.choose(rng)
            host, _, port = self.world.served.data.partition(":")
            with contextlib.suppress(OSError, ValueError):
                with socket.create_connection((host, int(port)), timeout=2) as connection:
                    text = (f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                            f"X-Amzn-SageMaker-Target-Model: {target.name}\r\n"
                            f"Content-Length: {len(BODY)}\r\n\r\n{BODY}")
                    connection.sendall(text.encode())
                    time.sleep(rng.uniform(0, 0.3))
                self.world.count("clients that left early")
            time.sleep(rng.expovariate(3.0))

    def pause(self) -> None:
        self.going.clear()
        end = time.monotonic() + HOLD + MARGIN + 5
        while self.under_way and time.monotonic() < end:
            time.sleep(0.05)

    def stop(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(HOLD + MARGIN + 5)


class Watcher:
    """Samples the ledger and kills the server in the middle of what it is told to."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.over = threading.Event()
        self.latest: dict = {}
        self.samples: Counter = Counter()
        self.armed: str | None = None
        self.hit = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.over.is_set():
            seen = self.world.served.look("/admin/v1/residency")
            if seen:
                self.latest = seen
                self.check(seen)
                wanted = self.armed
                states = [load["state"] for load in seen["loads"]]
                if wanted and wanted in states:
                    self.armed = None
                    self.world.served.kill()
                    self.samples[f"killed with loads {sorted(set(states))}"] += 1
                    self.hit.set()
                    continue
            time.sleep(0.005 if self.armed else 0.04)

    def check(self, seen: dict) -> None:
        self.samples["samples"] += 1
        for device in seen["devices"]:
            taken = device["charged_bytes"] + device["reserved_bytes"]
            excess = max(0, taken - device["budget_bytes"])
            if excess > device["over_bytes"]:
                self.world.violation("more than the budget, unsaid", device={
                    key: value for key, value in device.items() if key != "residents"})
            self.samples["samples over the budget, said so"] += device["over_bytes"] > 0
        disk = seen.get("disk") or {}
        if disk and disk["used_bytes"] > disk["budget_bytes"]:
            self.world.violation("the disk cache holds more than it may", disk=disk)
        for load in seen["loads"]:
            self.samples[f"load {load['state']}"] += 1

    def arm(self, state: str, within: float) -> bool:
        """Kills the server when a load is in this state; whether that happened."""
        self.hit.clear()
        self.armed = state
        if self.hit.wait(within):
            return True
        self.armed = None
        # It may have been taken in the meantime.
        return self.hit.wait(0.3)

    def stop(self) -> None:
        self.over.set()
        self.thread.join(15)
