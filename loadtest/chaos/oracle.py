"""What every answer is judged by: what each target's name meant, and when.

A target's past is a list of states, each from an instant on: `whole` (its files are one version,
with a signature), `partial` (files of several versions, or some are missing), `bad` (complete, and
nothing that may serve), `absent`. A request that began at b and ended at e may be answered with any
version that became whole until e and was not outlived: a version outlives all before it when it has
been whole, before b, for the allowed lag. The lag counts healthy time only: while a store fails or no
server runs, versions on disk serve. A deletion and a bad upload leave in service what was in service.
"""

from __future__ import annotations

import bisect
import threading
import time
from dataclasses import dataclass, field


@dataclass
class State:
    at: float
    kind: str
    signature: str | None = None
    # An operator was told that this one serves: none before it may, from then on.
    strict: bool = False


@dataclass
class Target:
    """One name in a store."""

    name: str
    store: str
    form: str
    rows: int
    noise: str
    version: int = 0
    past: list[State] = field(default_factory=list)
    # Held by whoever changes it; events skip what is busy.
    busy: threading.Lock = field(default_factory=threading.Lock)
    # An operator's choice whose outcome is not known: any version may serve.
    unsure: bool = False
    # Version digests by signature, and the reverse, as answers told them.
    digests: dict[str, str] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    # What each file of the store holds, where that is a whole version, and which.
    contents: dict[str, int] = field(default_factory=dict)
    whole: tuple[int, str] = (0, "")
    # The place in `past` of the newest version that was served, and when.
    newest_served: tuple[int, float] = (-1, 0.0)

    def now(self) -> State:
        return self.past[-1]

    def last_whole(self) -> State | None:
        return next((state for state in reversed(self.past) if state.kind == "whole"), None)


class Times:
    """Intervals in which something was not as usual, on the monotonic clock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.spans: list[list[float]] = []
        self.depth = 0

    def begin(self) -> None:
        with self.lock:
            if self.depth == 0:
                self.spans.append([time.monotonic(), float("inf")])
            self.depth += 1

    def end(self) -> None:
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                self.spans[-1][1] = time.monotonic()

    def total(self, since: float) -> float:
        """Seconds inside the spans that began since an instant."""
        with self.lock:
            now = time.monotonic()
            return sum(min(b, now) - a for a, b in self.spans if a >= since)

    def meets(self, begun: float, ended: float) -> bool:
        with self.lock:
            return any(a <= ended and b >= begun for a, b in reversed(self.spans))

    def before(self, at: float, healthy: float) -> float:
        """The instant from which `healthy` seconds outside all spans have passed until `at`."""
        with self.lock:
            for a, b in reversed(self.spans):
                if a >= at:
                    continue
                gap = at - min(b, at)
                if gap >= healthy:
                    break
                healthy -= gap
                at = a
        return at - healthy


class Oracle:
    """Judges answers. Thread-safe."""

    def __init__(self, lag: float) -> None:
        self.lag = lag
        self.lock = threading.Lock()
        self.targets: dict[str, Target] = {}
        # Store faults and ends of the server's lives; restarts; purges.
        self.unhealthy = Times()
        self.resets: list[float] = []
        # By how much answers were older than the newest whole version when they were asked for.
        self.lags: list[float] = []

    def note(self, target: Target, kind: str, signature: str | None = None, strict=False) -> None:
        with self.lock:
            target.past.append(State(time.monotonic(), kind, signature, strict))

    def note_reset(self) -> None:
        """From here on an older version may come back: what was newest may have left the disk."""
        with self.lock:
            self.resets.append(time.monotonic())

    def allowed(self, target: Target, begun: float, ended: float) -> list[int]:
        """Places in the target's past whose signatures may answer. Call with the lock held."""
        places: list[int] = []
        for place, state in enumerate(target.past):
            if state.at > ended:
                break
            if state.kind != "whole":
                continue
            later = target.past[place + 1:place + 2]
            until = min([begun] + [state.at for state in later])
            outlives = self.unhealthy.before(until, self.lag) >= state.at
            if outlives or (state.strict and state.at <= begun):
                places = []
            places.append(place)
        return places

    def judge(self, target: Target, begun: float, ended: float, signature: str | None,
              digest: str, tier: str) -> str | None:
        """What is wrong with an answer of status 200; nothing where it is right."""
        with self.lock:
            if signature is None:
                return "the answer has no signature"
            if not signature.startswith(target.name + "-v"):
                return f"{target.name} answered as another model: {signature}"
            known = target.signatures.setdefault(digest, signature)
            if known != signature:
                return f"version {digest[:12]} answered {known} and then {signature}"
            target.digests[signature] = digest
            places = self.allowed(target, begun, ended)
            fitting = [place for place in places if target.past[place].signature == signature]
            whole = {s.signature for s in target.past if s.kind == "whole" and s.at <= ended}
            if signature not in whole:
                return f"{signature} was never whole in the store"
            if not fitting and not target.unsure:
                may = [target.past[place].signature for place in places]
                return f"{signature} is too old (allowed: {may})"
            if fitting:
                return self._judge_order(target, begun, ended, fitting[-1], tier)
            return None

    def _judge_order(self, target, begun, ended, place, tier) -> str | None:
        newer = next((s.at for s in target.past[place + 1:] if s.kind == "whole"), None)
        if newer is not None and newer < begun:
            self.lags.append(begun - newer)
        best, at = target.newest_served
        excused = target.unsure or self.unhealthy.meets(at, ended) or \
            bisect.bisect(self.resets, at) < bisect.bisect(self.resets, ended)
        if place < best and at < begun and not excused:
            return (f"{target.past[place].signature} came back after "
                    f"{target.past[best].signature} had served")
        if place > best:
            target.newest_served = (place, ended)
        # Nothing that is gone from the store is loaded anew.
        if tier != "device" and not target.unsure:
            lo = self.unhealthy.before(begun, self.lag)
            then = [s for s in target.past if s.at <= ended]
            since = next((s.at for s in reversed(then) if s.kind != "absent"), None)
            first_gone = next((s.at for s in then if since is not None and s.at > since), None)
            if then[-1].kind == "absent" and first_gone is not None and first_gone < lo:
                return f"{target.past[place].signature} was loaded after its deletion"
        return None

    def must_serve(self, target: Target, begun: float, ended: float) -> bool:
        """Whether the target was whole, unchanged and reachable for so long that it must answer."""
        with self.lock:
            lo = self.unhealthy.before(begun, self.lag)
            before = [s for s in target.past if s.at <= lo]
            changed = any(lo < s.at <= ended for s in target.past)
            return (bool(before) and before[-1].kind == "whole" and not changed
                    and not self.unhealthy.meets(begun - 5.0, ended) and not target.unsure)
