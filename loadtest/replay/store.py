"""The store of a replay: the demo's models copied to many targets, and a timetable of faults.

Copies of a model answer alike and share no byte range with each other: each file of weights says whose
copy it is in its header, so nothing is loaded, kept on disk or answered for another.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import struct
import sys
import tarfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "chaos"))
import models as signed  # noqa: E402
from bucket import Bucket  # noqa: E402

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
DEMO = os.path.join(ROOT, "src", "server", "demo", "models")
EXPECTED = os.path.join(ROOT, "tests", "models", "demo_expectations.json")
# By the trace's rank of a model, around: language models, encoders, and classifiers of our own that sign.
KINDS = ["support/aurora", "signed", "search/encoder", "support/birch.tar.gz", "tickets/intent.tar.gz",
         "support/cobalt", "signed", "support/dahlia", "support/ember.tar.gz", "support/fjord"]
# What the store does wrong, and for how long at most: 503 and 500, connections that are reset, bodies that
# end before their end, bodies that trickle, silence, and a mixture.
FAULTS = {"busy": 6.0, "error": 6.0, "gone": 6.0, "cut": 8.0, "slow": 8.0, "stall": 4.0, "flaky": 10.0}


def marked(weights: bytes, name: str) -> bytes:
    """The same tensors in a file that says whose it is."""
    length = struct.unpack("<Q", weights[:8])[0]
    header = json.loads(weights[8:8 + length])
    header["__metadata__"] = {**header.get("__metadata__", {}), "copy": name}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + weights[8 + length:]


def folder(kind: str) -> dict[str, bytes]:
    """A demo model's files, of an archive those in it."""
    place, files = os.path.join(DEMO, kind), {}
    if kind.endswith(".tar.gz"):
        with tarfile.open(place) as archive:
            for member in archive.getmembers():
                if member.isfile():
                    files[member.name.removeprefix("./")] = archive.extractfile(member).read()
        return files
    for base, _, names in os.walk(place):
        for name in names:
            with open(os.path.join(base, name), "rb") as file:
                files[os.path.relpath(os.path.join(base, name), place)] = file.read()
    return files


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1, mtime=0) as zipped:
        with tarfile.open(fileobj=zipped, mode="w") as archive:
            for path, body in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
    return out.getvalue()


def numbers(value) -> list[float]:
    """All of a nested list."""
    return [it for inner in value for it in numbers(inner)] if isinstance(value, list) else [float(value)]


class Target:
    """One target, and what it must answer."""

    # What the first copy of an encoder answered to a text.
    vectors: dict[tuple[str, str], list[float]] = {}

    def __init__(self, name: str, kind: str, cases: list[dict]) -> None:
        self.name, self.kind, self.cases = name, kind, cases

    def request(self, dice: random.Random, tokens: int) -> tuple[dict, callable]:
        """A body, and whether an answer to it is right."""
        if self.kind == "signed":
            wanted = signed.signature(self.name, 1)
            return {"inputs": "hello world one two three"}, lambda body: signed.said(body) == wanted
        case = dice.choice(self.cases)
        if "messages" in case:
            text = case["text"]
            body = {"messages": case["messages"], "temperature": 0, "max_tokens": tokens}

            def begins(answer: bytes) -> bool:
                said = json.loads(answer)["choices"][0]["message"]["content"]
                return bool(said) and (said == text or text.startswith(said))

            return body, begins
        if "label" in case:
            return {"inputs": case["inputs"]}, lambda answer: json.loads(answer)[0]["label"] == case["label"]
        return {"inputs": case["inputs"]}, lambda answer: self.is_vector(case["inputs"], numbers(json.loads(answer)))

    def is_vector(self, text: str, answer: list[float]) -> bool:
        """All copies of an encoder answer the same; kernels choose paths by shape, so bits differ."""
        known = self.vectors.setdefault((self.kind, text), answer)
        return len(answer) == len(known) > 0 and max(abs(a - b) for a, b in zip(answer, known)) < 1e-3


class Store:
    """The bucket with all targets, `bytes` of them in all."""

    def __init__(self, tenants: int, ranks: int, known: set[tuple[int, int]]) -> None:
        self.bucket = Bucket("models")
        self.targets: dict[tuple[int, int], Target] = {}
        self.bytes = 0
        with open(EXPECTED, encoding="utf-8") as file:
            expected = json.load(file)
        files = {kind: folder(kind) for kind in set(KINDS) - {"signed"}}
        for tenant, rank in sorted(known):
            kind = KINDS[rank % len(KINDS)]
            archive = kind.endswith(".tar.gz")
            name = f"tenant{tenant:02}/m{rank:02}" + (".tar.gz" if archive else "")
            cases = [case for case in expected if case["target"] == kind and "prompt" not in case]
            self.targets[tenant, rank] = Target(name, kind, cases)
            if kind == "signed":
                copy = signed.classifier(name, 1, 4000, name)
            else:
                copy = {path: marked(body, name) if path.endswith(".safetensors") else body
                        for path, body in files[kind].items()}
            for path, body in [(name, packed(copy))] if archive else \
                    [(f"{name}/{path}", body) for path, body in copy.items()]:
                self.bucket.put(path, body)
                self.bytes += len(body)


class Trouble(threading.Thread):
    """Makes faults one after the other, with pauses; `windows` are [from, until, which] since the start."""

    def __init__(self, bucket: Bucket, begun: float, ends: float, pause: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.bucket, self.begun, self.ends, self.pause = bucket, begun, ends, pause
        self.dice = random.Random(seed)
        self.over = threading.Event()
        self.windows: list[list] = []

    def run(self) -> None:
        turn: list[str] = []
        while not self.over.wait(self.dice.uniform(0.5, 1.5) * self.pause):
            turn = turn or self.dice.sample(sorted(FAULTS), len(FAULTS))
            fault = turn.pop()
            lasts = FAULTS[fault] * self.dice.uniform(0.4, 1.0)
            if time.monotonic() + lasts > self.ends:
                return
            self.windows.append([time.monotonic() - self.begun, None, fault])
            self.bucket.set(fault)
            self.over.wait(lasts)
            self.bucket.set(None)
            self.windows[-1][1] = time.monotonic() - self.begun

    def was_near(self, begun: float, ended: float, after: float) -> bool:
        """Whether a fault was at any time of a request, or so shortly before that it may still be felt."""
        return any(start <= ended and begun <= (end if end is not None else 1e18) + after
                   for start, end, _ in list(self.windows))
