"""The store of churn.py's adapters, what it held when, and whether an answer was right."""

import bisect
import collections
import itertools
import json
import math
import random
import shutil
import threading
import time

from spelled import CONFIG, LETTERS, RANKS, SPOILS, WEIGHTS, adapter, base, spelling, spoiled

# Seconds: what the server is set to, how long a load may take, and the longest an upload stops midway.
SETTLE, TTL, REFRESH, LOADING, PAUSE = 1, 1, 1, 5, 3


def write_slowly(path, content, dice, finish):
    """In pieces, into what is there; calls `finish` before the last."""
    cuts = sorted(dice.randrange(len(content)) for _ in range(dice.randrange(4))) if content else []
    with open(path, "wb", buffering=0) as file:
        for begin, end in zip([0, *cuts], cuts):
            file.write(content[begin:end])
            time.sleep(dice.uniform(0, PAUSE / 4))
        finish()
        file.write(content[cuts[-1] if cuts else 0:])


class Adapter:
    """One name in the store: what it held since when, and when it was asked for."""

    def __init__(self, number):
        self.number, self.name, self.busy = number, f"a{number:03}", threading.Lock()
        self.past, self.asks = [], []
        # The newest whole version with its files; the rank of what lies in the folder.
        self.version, self.files, self.rank = 0, {}, 0

    def seen(self, at, kind):
        """When a request has had the store looked at that saw what the folder held since `at`."""
        def asked(since):
            place = bisect.bisect_left(self.asks, since)
            return self.asks[place] if place < len(self.asks) else math.inf
        first = asked(at + SETTLE + TTL + REFRESH)
        return asked(first + SETTLE + REFRESH) if kind == "gone" else first

    def stretches(self):
        """Each state with its begin and its end."""
        ends = [at for at, _, _ in self.past[1:]] + [math.inf]
        return [(at, end, kind, version) for (at, kind, version), end in zip(self.past, ends)]


class World:
    """What the run's threads share: the store, what became of answers, and what was wrong."""

    def __init__(self, folder, count, seed):
        self.store, self.aside, self.seed = folder / "store", folder / "aside", seed
        self.adapters = [Adapter(number) for number in range(count)]
        self.first = random.Random(seed).randrange(100_000, 500_000)
        self.versions = itertools.count(self.first)
        self.lock, self.over = threading.Lock(), threading.Event()
        self.counts, self.wrong, self.began = collections.Counter(), [], time.monotonic()
        # The longest that answers were stale: since the change, and since a request had it looked at.
        self.stale = {kind: [0.0, 0.0] for kind in ("whole", "gone")}
        self.aside.mkdir()
        base(self.store / "base")

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def fault(self, kind, what, one=None, **more):
        now = time.monotonic()
        with self.lock:
            past = [[round(at - now, 3), *state] for at, *state in one.past[-8:]] if one else []
            self.counts[f"wrong: {kind}"] += 1
            self.wrong.append({"kind": kind, "what": what, "at": round(now - self.began, 3),
                               "adapter": one and one.name, "past": past} | more)
        print(f"{now - self.began:8.2f} {one.name if one else ''} {kind}: {what} {more}", flush=True)

    def ask(self, adapters):
        with self.lock:
            now = time.monotonic()
            for one in adapters:
                one.asks.append(now)
            return now

    def judge(self, one, sent, text, tokens, left):
        """What is wrong with a text, if anything; one that a client has `left` may be shorter."""
        answered, marks = time.monotonic(), text.split()
        if len(marks) > tokens or (len(marks) < tokens and not left):
            return f"{len(marks)} marks of {tokens}"
        digits = "".join(mark[1:] for mark in marks[:len(LETTERS)])
        rest = zip(itertools.cycle(LETTERS), itertools.cycle(digits))
        if marks and (not digits.isdigit() or any(mark != "".join(wanted) for mark, wanted in zip(marks, rest))):
            return "no spelling"
        if not spelling(one.number, 0).startswith(digits[:3]):
            return "another adapter"
        with self.lock:
            return self.judge_version(one, sent, answered, int(digits[3:])) if len(digits) == 9 else None

    def judge_version(self, one, sent, answered, version):
        past = [it for it in one.stretches() if it[0] <= answered]
        places = [at for at, it in enumerate(past) if it[2:] == ("whole", version)]
        if not places:
            return "a version that was never whole"
        later = [(one.seen(at, kind), at, end, kind) for at, end, kind, _ in past[places[-1] + 1:]
                 if kind in self.stale and at <= sent]
        if any(seen + LOADING <= min(end, sent) for seen, _, end, _ in later):
            return f"a version that is too old, by {sent - later[0][1]:.3f} s"
        stays = [(seen, at, kind) for seen, at, end, kind in later if end > sent]
        if not stays:
            held = "a later one had not stayed" if later else [it[2] for it in past if it[0] <= sent][-1]
            self.counts[f"text while {held}"] += 1
            return None
        seen, at, kind = stays[0]
        self.counts[f"stale after {kind}"] += 1
        self.stale[kind] = [max(pair) for pair in zip(self.stale[kind], [sent - at, sent - seen])]
        return None

    def must_answer(self, one, sent):
        with self.lock:
            at, kind, _ = one.past[-1]
            return kind == "whole" and one.seen(at, kind) + LOADING <= sent

    def note(self, one, kind, version=None):
        with self.lock:
            one.past.append((time.monotonic(), kind, version))

    def make(self, one, dice):
        """A new version, of another rank than any whose files it may meet in the folder."""
        kept = json.loads(one.files[CONFIG])["r"] if one.files else 0
        one.rank = dice.choice([rank for rank in RANKS if rank not in (kept, one.rank)])
        version = next(self.versions)
        return version, adapter(one.number, version, one.rank, dice)

    def put(self, one, files, dice, way=None, finish=lambda: None):
        """Brings files into a folder; calls `finish` right before the last of them is whole."""
        place, fresh, old = self.store / one.name, self.aside / one.name, self.aside / f"{one.name}-old"
        way = way or dice.choice(["at once", "by files", "by pieces"])
        if way == "at once":
            fresh.mkdir()
            for path, content in files.items():
                (fresh / path).write_bytes(content)
            if place.exists():
                place.rename(old)
            finish()
            fresh.rename(place)
            return shutil.rmtree(old, ignore_errors=True)
        place.mkdir(exist_ok=True)
        for path in {CONFIG, WEIGHTS} - set(files):
            (place / path).unlink(missing_ok=True)
        first, *last = dice.sample(list(files), len(files))
        for path in [first, *last]:
            is_last = path == [first, *last][-1]
            if way == "by files":
                fresh.write_bytes(files[path])
                finish() if is_last else None
                fresh.rename(place / path)
            else:
                write_slowly(place / path, files[path], dice, finish if is_last else lambda: None)
            self.over.wait(0 if is_last else dice.uniform(0, PAUSE))

    def replace(self, one, dice, way=None):
        version, files = self.make(one, dice)
        self.note(one, "half")
        self.put(one, files, dice, way, lambda: self.note(one, "whole", version))
        one.version, one.files = version, files

    def restore(self, one, dice):
        """Brings back what was whole last."""
        one.rank = json.loads(one.files[CONFIG])["r"]
        self.note(one, "half")
        self.put(one, one.files, dice, None, lambda: self.note(one, "whole", one.version))

    def remove(self, one, dice):
        self.note(one, "half")
        for path in dice.sample([CONFIG, WEIGHTS], dice.choice([0, 2])):
            (self.store / one.name / path).unlink()
            self.over.wait(dice.uniform(0, PAUSE))
        shutil.rmtree(self.store / one.name)
        self.note(one, "gone")

    def corrupt(self, one, dice):
        how = dice.choice(SPOILS)
        self.count(f"corrupted: {how}")
        self.note(one, "corrupt")
        self.put(one, spoiled(self.make(one, dice)[1], how, dice), dice)
