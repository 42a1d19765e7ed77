"""Everything that a run shares: the stores, the server, what happened and what was wrong."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections import Counter, deque

import models
from bucket import Bucket
from oracle import Oracle, Target
from served import Served

SETTINGS = """version = 1
[listen]
data = "127.0.0.1:0"
admin = "127.0.0.1:0"
[memory]
{budget}
[cache]
dir = "{work}/disk/cache"
size = "{cache}"
[store]
part_size = "256KiB"
catalogue_ttl = "1s"
negative_ttl = "500ms"
settle = "{settle}s"
update_settle = "{update_settle}s"
stall_timeout = "2s"
max_retries = 2
[residency]
refresh_every = "1s"
load_timeout = "60s"
[serving]
hold = "{hold}s"
request_timeout = "{limit}s"
context = 64
step_tokens = 256
[shutdown]
drain_timeout = "20s"
[log]
access = "off"
[[endpoint]]
name = "default"
[[endpoint.mount]]
prefix = "s3"
uri = "s3://models/"
endpoint_url = "http://{bucket}"
path_style = true
region = "us-east-1"
[[endpoint.mount]]
prefix = "file"
uri = "file://{work}/store/"
"""
SETTLE, UPDATE_SETTLE, HOLD, LIMIT = 2, 4, 8, 20
# Beyond what the server promises, for a machine that has other things to do.
MARGIN = 12.0
# The longest pause of an upload between two files, well within the settling time.
PAUSE = 0.6
FORMS = ["folder", "folder", "archive", "folder", "sharded", "tar"]


class World:
    """The run's state. What changes a target holds its `busy`."""

    def __init__(self, options, work: str) -> None:
        self.options, self.work = options, work
        self.rng = random.Random(options.seed)
        self.begun = time.monotonic()
        self.bucket = Bucket("models")
        self.oracle = Oracle(options.lag)
        self.counts: Counter = Counter()
        self.violations: list[dict] = []
        self.recent: deque = deque(maxlen=25)
        self.lock = threading.Lock()
        # Held by the first of those who write to the folder, and by who takes it away.
        self.alone = threading.Lock()
        self.entering = threading.Lock()
        self.writers = 0
        self.kept: set[str] = set()
        # Seconds that requests took, by tier or status; refusals that say why.
        self.taken: dict[str, list[float]] = {}
        self.refusals: Counter = Counter()
        self.has_versions = False
        self.disk_is_small = self.mount_disk()
        os.makedirs(os.path.join(work, "store"))
        self.targets = self.make_targets(options.models)
        self.halves = [Target(f"{store}/half{i}", store, "folder", 2000, f"h{i}")
                       for i, store in enumerate(["s3", "file"] * 2)]
        self.oracle.targets = {t.name: t for t in self.targets + self.halves}
        self.served = Served(options.binary, os.path.join(work, "config.toml"),
                             os.path.join(work, "log.txt"), {
            "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_EC2_METADATA_DISABLED": "true"})

    def mount_disk(self) -> bool:
        """A disk of its own for the cache, so that it can be full; false where that takes root."""
        disk = os.path.join(self.work, "disk")
        os.makedirs(disk)
        command = ["mount", "-t", "tmpfs", "-o", "size=160m", "roundhouse-chaos", disk]
        with contextlib.suppress(OSError):
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        return False

    def make_targets(self, count: int) -> list[Target]:
        endings = {"archive": ".tar.gz", "tar": ".tar"}
        found = []
        for number in range(count):
            store = "s3" if number % 3 else "file"
            form = FORMS[number % len(FORMS)]
            name = f"{store}/m{number:02}{endings.get(form, '')}"
            # A third of them are fine-tunes of two bases: they share most of their bytes.
            rows = [3000, 6000][number % 2] if number % 3 == 1 else self.rng.randrange(2000, 9000)
            found.append(Target(name, store, form, rows, f"base{number % 2}" if number % 3 == 1 else name))
        return found

    def settings(self, budget: int | None, cache: str) -> None:
        text = SETTINGS.format(
            budget=f'budget = "{budget}B"' if budget else "", work=self.work, cache=cache,
            settle=SETTLE, update_settle=UPDATE_SETTLE, hold=HOLD, limit=LIMIT,
            bucket=self.bucket.address)
        with open(os.path.join(self.work, "config.toml"), "w", encoding="utf-8") as file:
            file.write(text)

    def event(self, kind: str, detail: str = "") -> None:
        at = time.monotonic() - self.begun
        with self.lock:
            self.counts[kind] += 1
            self.recent.append(f"{at:.2f} {kind} {detail}".strip())
        if self.options.verbose:
            print(f"{at:8.2f} {kind} {detail}", flush=True)

    def count(self, kind: str) -> None:
        with self.lock:
            self.counts[kind] += 1

    def took(self, seconds: float, what: str) -> None:
        with self.lock:
            self.taken.setdefault(what, []).append(seconds)

    def violation(self, what: str, target: Target | None = None, **more) -> None:
        with self.oracle.lock:
            past = [] if target is None else [
                {"at": round(s.at - self.begun, 3), "kind": s.kind, "signature": s.signature,
                 "strict": s.strict} for s in target.past[-8:]]
        record = {"at": round(time.monotonic() - self.begun, 3), "seed": self.options.seed,
                  "what": what, "target": target.name if target else None, **more, "past": past}
        with self.lock:
            self.counts["violations"] += 1
            record["events_before"] = list(self.recent)
            if len(self.violations) < 100:
                self.violations.append(record)
        print(f"{record['at']:8.2f} VIOLATION {record['target'] or ''} {what}", flush=True)

    # What stands in the stores.

    def files(self, target: Target, version: int, salt: str = "") -> dict[str, bytes]:
        """A version's files by path; one, with an empty path, for an archive."""
        noise = target.noise if target.noise.startswith("base") else f"{target.noise}:{version}"
        made = models.classifier(target.name, version, target.rows, noise, salt,
                                 target.form == "sharded")
        if target.form in ("archive", "tar"):
            return {"": models.archive(made, target.form == "archive")}
        return made

    def key(self, target: Target, path: str) -> str:
        name = target.name.split("/", 1)[1]
        return f"{name}/{path}" if path else name

    def put(self, target: Target, path: str, body: bytes, slowly: random.Random | None) -> None:
        key = self.key(target, path)
        if target.store == "s3":
            self.bucket.put(key, body)
            return
        place = os.path.join(self.work, "store", key)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if slowly is None or slowly.random() < 0.5:
            # As a careful writer does it.
            with open(place + ".part", "wb") as file:
                file.write(body)
            os.replace(place + ".part", place)
            return
        pieces = slowly.randrange(1, 6)
        with open(place, "wb", buffering=0) as file:
            for number in range(pieces):
                part = body[len(body) * number // pieces:len(body) * (number + 1) // pieces]
                file.write(part)
                time.sleep(slowly.uniform(0, PAUSE / 2))

    def remove(self, target: Target, path: str) -> None:
        key = self.key(target, path)
        if target.store == "s3":
            self.bucket.delete(key)
            return
        place = os.path.join(self.work, "store", key)
        with contextlib.suppress(FileNotFoundError):
            os.remove(place)
        if path:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(place))

    def present(self, target: Target) -> list[str]:
        """The paths of a target's files that are in its store."""
        base = self.key(target, "")
        if target.store == "s3":
            with self.bucket.lock:
                keys = list(self.bucket.objects)
            found = [key[len(base):] for key in keys if key == base or key.startswith(base + "/")]
            return [path.lstrip("/") for path in found]
        place = os.path.join(self.work, "store", base)
        if os.path.isfile(place):
            return [""]
        return sorted(os.listdir(place)) if os.path.isdir(place) else []

    @contextlib.contextmanager
    def writing(self, target: Target):
        """While it holds, the folder of the `file` store stays where it is."""
        if target.store != "file":
            yield
            return
        with self.entering:
            if self.writers == 0:
                self.alone.acquire()
            self.writers += 1
        try:
            yield
        finally:
            with self.entering:
                self.writers -= 1
                if self.writers == 0:
                    self.alone.release()

    def close(self) -> None:
        self.bucket.close()
        if self.disk_is_small:
            subprocess.run(["umount", os.path.join(self.work, "disk")], check=False)
        shutil.rmtree(self.work, ignore_errors=True)
