"""Events that trouble the server, chosen at random, and the calm after them."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import uploads
from bucket import FAULTS
from clients import Clients, Watcher, invoke
from oracle import Target
from served import Failed
from world import World

# Events with their weights.
UPLOADS = {uploads.replace: 10, uploads.roll_back: 2, uploads.other_weights: 2, uploads.truncated: 2,
           uploads.corrupted: 3, uploads.half: 3, uploads.delete: 3}
OTHERS = {"never_complete": 2, "fault": 5, "files_gone": 1, "disk_full": 1, "kill": 1,
          "kill_fetching": 1, "kill_arriving": 1, "kill_loading": 1, "kill_starting": 0.5, "terminate": 1, "load": 2,
          "unload": 2, "purge": 1, "keep": 1, "release": 1, "refresh": 2, "use": 2}
# What an operator's command may be answered: done, or a reason.
ANSWERS = {200, 400, 403, 404, 429, 500, 502, 503, 504, 507}
DRAIN_LIMIT = 30.0
# For a server that does not start at first, in seconds.
START_LIMIT = 60.0
# A failure's pause doubles up to a minute.
CALM_LIMIT = 90.0


class Trouble:
    """Makes events happen. Those that take long run beside others."""

    def __init__(self, world: World, clients: Clients, watcher: Watcher) -> None:
        self.world, self.clients, self.watcher = world, clients, watcher
        self.pool = ThreadPoolExecutor(8)
        self.running: list = []
        self.life = threading.Lock()
        self.faulty = threading.Lock()
        self.pinned: list[Target] = []

    def phase(self, seconds: float) -> None:
        """Trouble for so long; returns when all of it has ended."""
        world, rng = self.world, self.world.rng
        end = time.monotonic() + seconds
        next_hot = 0.0
        while time.monotonic() < end:
            if time.monotonic() > next_hot:
                self.clients.hot = rng.sample(world.targets, 6)
                next_hot = time.monotonic() + 15
            seed = rng.random()
            if rng.random() < 0.45:
                event = rng.choices(list(UPLOADS), list(UPLOADS.values()))[0]
                self.start(self.upload, event, rng.choice(world.targets), seed)
            else:
                name = rng.choices(list(OTHERS), list(OTHERS.values()))[0]
                self.start(getattr(self, name), rng.choice(world.targets), random.Random(seed))
            time.sleep(rng.expovariate(1 / world.options.every))
            self.revive()
        for job in self.running:
            job.result()
        self.running = []

    def revive(self) -> None:
        """Starts a server that ended by itself, which none may."""
        if not self.life.acquire(blocking=False):
            return
        try:
            if (status := self.world.served.died()) is not None:
                self.world.violation(f"the server ended by itself with status {status}")
                with self.unhealthy():
                    self.restart(0)
        finally:
            self.life.release()

    def start(self, function, *arguments) -> None:
        self.running = [job for job in self.running if not job.done() or job.exception()]
        self.running.append(self.pool.submit(function, *arguments))

    # Uploads.

    def upload(self, event, target: Target, seed: float) -> None:
        if not target.busy.acquire(blocking=False):
            return
        try:
            rng = random.Random(seed)
            state = target.now().kind
            if state == "absent":
                # Back again, as a later version.
                event = uploads.replace
            self.world.event(event.__name__, target.name)
            event(self.world, target, rng)
        finally:
            target.busy.release()

    def never_complete(self, _, rng) -> None:
        target = rng.choice(self.world.halves)
        if target.busy.acquire(blocking=False):
            try:
                self.world.event("never_complete", target.name)
                uploads.never_complete(self.world, target, rng)
            finally:
                target.busy.release()

    # What the store and the disk do.

    @contextlib.contextmanager
    def unhealthy(self):
        self.world.oracle.unhealthy.begin()
        try:
            yield
        finally:
            self.world.oracle.unhealthy.end()

    def one_fault(self, function) -> None:
        if self.faulty.acquire(blocking=False):
            try:
                with self.unhealthy():
                    function()
            finally:
                self.faulty.release()

    def fault(self, _, rng) -> None:
        def of_the_bucket():
            kind = rng.choice(FAULTS)
            self.world.event(f"store: {kind}")
            self.world.bucket.set(kind)
            time.sleep(rng.uniform(0.5, 6))
            self.world.bucket.set(None)
        self.one_fault(of_the_bucket)

    def files_gone(self, _, rng) -> None:
        """The folder of the `file` store is away, as a mount that was lost."""
        self.one_fault(lambda: self.take_away(rng))

    def take_away(self, rng) -> None:
        world = self.world
        here = os.path.join(world.work, "store")
        if not world.alone.acquire(blocking=False):
            return
        try:
            world.event("store: folder gone")
            os.rename(here, here + ".away")
            time.sleep(rng.uniform(0.5, 4))
            os.rename(here + ".away", here)
        finally:
            world.alone.release()

    def disk_full(self, _, rng) -> None:
        if self.world.disk_is_small:
            self.one_fault(lambda: self.fill(rng))

    def fill(self, rng) -> None:
        disk = os.path.join(self.world.work, "disk")
        found = os.statvfs(disk)
        size = found.f_bavail * found.f_frsize - rng.choice([0, 4096, 200_000, 1_500_000])
        self.world.event("disk full")
        with open(os.path.join(disk, "filler"), "wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        time.sleep(rng.uniform(1, 6))
        os.remove(os.path.join(disk, "filler"))

    # What happens to the process.

    def restart(self, pause: float) -> None:
        time.sleep(pause)
        self.world.oracle.note_reset()
        self.world.kept.clear()
        end = time.monotonic() + START_LIMIT
        while True:
            try:
                self.world.took(self.world.served.start(), "start of the server")
                return
            except Failed as error:
                self.world.violation(f"the server did not start: {error}")
                if time.monotonic() > end:
                    raise
            time.sleep(0.5)

    def one_life(self, function) -> None:
        if not self.life.acquire(blocking=False):
            return
        try:
            function()
        finally:
            self.life.release()

    def kill(self, _, rng) -> None:
        def now():
            self.world.event("kill -9")
            with self.unhealthy():
                self.world.served.kill()
                self.restart(rng.uniform(0, 1))
        self.one_life(now)

    def kill_fetching(self, _, rng) -> None:
        self.kill_in("fetching", rng)

    def kill_arriving(self, _, rng) -> None:
        self.kill_in("arriving", rng)

    def kill_loading(self, _, rng) -> None:
        self.kill_in("loading", rng)

    def kill_in(self, state: str, rng) -> None:
        def armed():
            if self.watcher.arm(state, 5):
                self.world.event(f"kill -9 while {state}")
                with self.unhealthy():
                    self.restart(rng.uniform(0, 0.5))
        self.one_life(armed)

    def kill_starting(self, _, rng) -> None:
        def while_starting():
            self.world.event("kill -9 while starting")
            with self.unhealthy():
                self.world.served.kill()
                self.world.served.start_and_kill(rng.uniform(0, 0.15))
                self.restart(0)
        self.one_life(while_starting)

    def terminate(self, _, rng) -> None:
        def orderly():
            self.world.event("SIGTERM")
            with self.unhealthy():
                status, took = self.world.served.terminate(DRAIN_LIMIT)
                self.world.took(took, "orderly stop")
                if status != 0:
                    self.world.violation(f"SIGTERM ended in {took:.1f} s with status {status}")
                self.restart(rng.uniform(0, 0.5))
        self.one_life(orderly)

    # What operators ask for.

    def command(self, name: str, target: Target, **more) -> tuple[int, dict]:
        world = self.world
        begun = time.monotonic()
        status, answer = world.served.command_on(name, target.name, 75.0, **more)
        if status == 0 and world.served.was_stopped(begun, time.monotonic()) is None:
            world.violation(f"'{name}' was not answered", target, more=more)
        elif status and status not in ANSWERS:
            world.violation(f"'{name}' was answered {status}", target, answer=answer)
        world.event(f"operator: {name}", f"{target.name} {more or ''} -> {status}")
        world.count(f"operator: {name}: {status}")
        return status, answer

    def load(self, target, rng) -> None:
        self.command("load", target, force=rng.random() < 0.3)

    def unload(self, target, _) -> None:
        self.command("unload", target)

    def purge(self, target, _) -> None:
        self.world.oracle.note_reset()
        self.command("unload", target, purge=True)
        self.world.oracle.note_reset()

    def keep(self, target, _) -> None:
        if len(self.world.kept) < 2:
            self.world.kept.add(target.name)
            self.command("keep", target)

    def release(self, target, _) -> None:
        for name in list(self.world.kept):
            self.world.kept.discard(name)
            self.command("release", self.world.oracle.targets[name])

    def refresh(self, target, _) -> None:
        self.command("refresh", target)

    def use(self, target, rng) -> None:
        """Back to an earlier version for a while, then to what the store holds again."""
        world = self.world
        earlier = [s for s in target.digests if s != target.last_whole().signature]
        if not world.has_versions or not earlier or not target.busy.acquire(blocking=False):
            return
        try:
            if target.now().kind != "whole":
                return
            newest, chosen = target.now().signature, rng.choice(earlier[-2:])
            target.unsure = True
            world.oracle.note_reset()
            status, _ = self.command("use", target, version=target.digests[chosen])
            if status == 200:
                world.oracle.note(target, "whole", chosen, strict=True)
                target.unsure = False
                time.sleep(rng.uniform(1, 8))
            target.unsure = True
            if not self.use_latest(target, newest):
                self.pinned.append(target)
        finally:
            target.busy.release()

    def use_latest(self, target: Target, newest: str) -> bool:
        status, _ = self.command("use", target, version="latest")
        if status != 200:
            return False
        self.world.oracle.note_reset()
        # Which one that is the store says, as for any other model: perhaps it has to settle.
        self.world.oracle.note(target, "whole", newest)
        target.unsure = False
        return True

    # Calm.

    def calm(self) -> dict:
        """Heals everything, and waits until every whole model answers with its newest version."""
        world = self.world
        for target in world.targets:
            with target.busy:
                if target.now().kind in ("partial", "bad"):
                    uploads.publish(world, target, world.rng, slowly=False)
        self.clients.pause()
        begun = time.monotonic()
        for target in self.pinned:
            # What an operator chose was noted as well, and is not what the store holds.
            stored = [s for s in target.past if s.kind == "whole" and not s.strict]
            self.use_latest(target, stored[-1].signature)
        self.pinned = [target for target in self.pinned if target.unsure]
        self.release(None, None)
        missing = {t.name: t for t in world.targets if t.now().kind == "whole"}
        wanted = {name: t.now().signature for name, t in missing.items()}
        asked, last = len(missing), {}
        while missing and time.monotonic() < begun + CALM_LIMIT:
            for name, target in list(missing.items()):
                last[name] = invoke(world, target, "calm")
                if last[name] == (200, wanted[name]):
                    del missing[name]
            self.lift_quarantines()
            time.sleep(0.2)
        took = time.monotonic() - begun
        for name, target in missing.items():
            world.violation(f"in calm it does not answer with {wanted[name]}: {last[name]}", target)
        self.check_rest()
        return {"models": asked, "seconds_to_newest": round(took, 2),
                "resident_mib": round(world.served.resident_bytes() / 2**20, 1)}

    def lift_quarantines(self) -> None:
        seen = self.world.served.look("/admin/v1/residency") or {}
        for failed in seen.get("failed", []):
            if failed["state"] == "quarantined":
                self.world.count("quarantines lifted")
                target = self.world.oracle.targets[failed["target"]]
                self.command("load", target, force=True)

    def check_rest(self) -> None:
        """Nothing is held by nobody."""
        end = time.monotonic() + 20
        while True:
            seen = self.world.served.look("/admin/v1/residency") or {}
            residents = [r for device in seen.get("devices", []) for r in device["residents"]]
            left = {"waiters": seen.get("waiters"), "loads": seen.get("loads"),
                    "leases": [r for r in residents if r["leases"]],
                    "reserved": sum(d["reserved_bytes"] for d in seen.get("devices", []))}
            if seen and not any(left.values()):
                return
            if time.monotonic() > end:
                self.world.violation("in calm something is still held", left=left)
                return
            time.sleep(0.2)
