"""Adapters that are replaced, removed and corrupted while many ask for them.

    python churn.py BINARY OUTPUT [--minutes 30] [--adapters 200] [--seed N]

A tiny decoder and adapters of it are made here, whose weights spell the adapter's number and a version
that no other adapter ever has, over and over, whatever the prompt: each digit comes through the values,
the output of the attention or of the feed-forward block of some layer, or the head. So a wrong adapter,
an old version, keys and values of another one, or a mixture of them, shows. A server whose budget holds
a fifth of the adapters is asked by CLIENTS while CHANGERS write versions at once, file by file or piece
by piece, remove, corrupt and mend.

An answer's version must have been whole in the store, and not be outlived: by a later version (or a
removal) that stayed for SETTLE + TTL + REFRESH, and from the first request thereafter on for LOADING
more; a removal takes a second look. The last whole version may serve on while its folder is half written
or corrupt, as documented. An error is right only then, while there is no adapter, or within the same
bound after its return. All else is wrong, as is any 5xx but OpenAI's "not ready". Writes
OUTPUT/churn.json and OUTPUT/README.md; exits with 1 where anything was wrong. Standard library only; the
server listens on loopback and is stopped at the end.
"""

import argparse
import collections
import concurrent.futures
import http.client
import itertools
import json
import os
import pathlib
import random
import re
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import started
from judged import LOADING, PAUSE, REFRESH, SETTLE, TTL, World
from spelled import CONTEXT, LETTERS, WORDS, spelling

CLIENTS, CHANGERS = 16, 6
MIB = 1 << 20
# By how much the process may grow beyond the ledger: what its own witness tolerates, the beginnings of
# files that the catalogue keeps, plans, and for each of so many versions what else is remembered of it.
WITNESS, BEGINNINGS, PLANS, REMEMBERED, VERSIONS = 64 * MIB, 64 * MIB, 32 * MIB, 8 << 10, 10_000

FACES = ["TargetModel", "adapters", "model", "stream", "left"]
# Errors of what is not there, not whole or not yet loaded, on either face.
EXPLICABLE = {(400, "ValidationError"), (424, "ModelError 400"), (429, "ModelNotReadyException"),
              (404, "model_not_found"), (400, "model_invalid"), (503, "model_not_ready")}
SETTINGS = f"""version = 1
[listen]
data = "127.0.0.1:0"
admin = "127.0.0.1:0"
[memory]
budget = "{{budget}}B"
yield_to_others = false
[cache]
dir = "{{cache}}"
size = "2GiB"
[store]
settle = "{SETTLE}s"
update_settle = "{SETTLE}s"
catalogue_ttl = "{TTL}s"
negative_ttl = "{TTL}s"
[residency]
refresh_every = "{REFRESH}s"
[serving]
context = {CONTEXT}
step_tokens = 512
[log]
access = "off"
audit = "off"
[[endpoint]]
name = "default"
on_delete = "drain"
[[endpoint.mount]]
uri = "file://{{store}}/"
"""


class Server(started.Server):
    def __init__(self, binary, store, budget):
        self.cache = tempfile.TemporaryDirectory(prefix="churn-cache-")
        settings = pathlib.Path(self.cache.name, "roundhouse.toml")
        settings.write_text(SETTINGS.format(budget=budget, cache=f"{self.cache.name}/c", store=store))
        super().__init__(binary, ["--config", settings])

    def open(self, method, address, path, body=None, headers=None):
        """An answer whose body is still to be read; the connection ends with it."""
        connection = http.client.HTTPConnection(address, timeout=120)
        headers = {"content-type": "application/json", "connection": "close"} | (headers or {})
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection.getresponse()

    def admin_call(self, name, target=None):
        body = {"endpoint": "default", "target": target}
        with self.open("POST" if target else "GET", self.admin, name, body if target else None) as answer:
            return answer.status, answer.read().decode()

    def residency(self):
        return json.loads(self.admin_call("/admin/v1/residency")[1])["devices"][0]

    def counters(self):
        """Sums of the residency's counters, and each by reason or tier."""
        sums = collections.Counter()
        text, line = self.admin_call("/metrics")[1], r"^roundhouse_residency_(\w+)_total\{(.*?)\} (\S+)$"
        for name, labels, value in re.findall(line, text, re.M):
            for which in ["", *re.findall(r'(?:reason|tier)="(\w+)"', labels)]:
                sums[f"{name} {which}".strip()] += int(float(value))
        return sums

    def levels(self):
        device = self.residency()
        return {"charged_bytes": device["charged_bytes"],
                "anonymous_bytes": self.anonymous(),
                "adapters": len(adapters_of(device)), "leases": sum(it["leases"] for it in device["residents"])}

    def stop(self):
        super().stop()
        self.cache.cleanup()


def adapters_of(device):
    return [it for it in device["residents"] if it["kind"] == "adapter"]


def code_of(answer):
    """What an error is called, on either face."""
    told = json.loads(answer.read())
    kind = answer.headers["x-amzn-errortype"]
    if kind == "ModelError":
        return f"{kind} {told['OriginalStatusCode']}"
    return kind or told["error"]["code"]


def streamed(answer, most):
    """A streamed text, or its first events; and how it went wrong."""
    text, events = "", 0
    for line in answer:
        if line.startswith(b"data: [DONE]"):
            return text, None
        event = json.loads(line[6:]) if line.startswith(b"data: ") else {"choices": []}
        if "error" in event:
            return text, event["error"].get("code")
        text += "".join(choice["text"] for choice in event["choices"])
        events += len(event["choices"])
        if most and events >= most:
            return text, None
    return text, "the stream ended in the middle"


def invoke(server, face, adapters, prompt, tokens, most):
    """The status, the error's code if there is one, and the texts."""
    name, path = adapters[0].name, "/v1/completions"
    body, headers = {"model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0}, {}
    if face in ("TargetModel", "adapters"):
        path = "/endpoints/default/invocations"
        body = {"inputs": prompt, "parameters": {"max_new_tokens": tokens, "do_sample": False}}
        headers = {"x-amzn-sagemaker-target-model": "base" if face == "adapters" else name}
    if face == "adapters":
        body |= {"inputs": [prompt] * len(adapters), "adapters": [one.name for one in adapters]}
    body |= {"stream": True} if face in ("stream", "left") else {}
    with server.open("POST", server.data, path, body, headers) as answer:
        if answer.status != 200:
            return answer.status, code_of(answer), []
        if face in ("stream", "left"):
            text, code = streamed(answer, most)
            return 200, code, [text]
        told = json.loads(answer.read())
    if face == "model":
        return 200, None, [told["choices"][0]["text"]]
    return 200, None, [it["generated_text"] for it in (told if face == "adapters" else [told])]


def asked(world, server, face, adapters, prompt, tokens, most=0):
    """Asks, and judges what comes back; the texts, if it was answered."""
    sent = world.ask(adapters)
    try:
        status, code, texts = invoke(server, face, adapters, prompt, tokens, most)
        answers = list(zip(adapters, texts, strict=True)) if code is None else []
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        world.fault("no answer", f"{face}: {error!r}", adapters[0], took=time.monotonic() - sent)
        return None
    took = time.monotonic() - sent
    if code is None:
        world.count(f"answered: {face}")
        for one, text in answers:
            if wrong := world.judge(one, sent, text, tokens, face == "left"):
                world.fault("answer", f"{face}: {wrong}", one, text=text, took=took)
        return texts
    kinds = [one.past[-1][1] for one in adapters]
    kind = next((kind for kind in kinds if kind != "whole"), "whole")
    world.count(f"refused while {kind}: {status} {code}")
    if (status, code) not in EXPLICABLE:
        world.fault("5xx" if status >= 500 else "error", f"{face}: {status} {code}", adapters[0], took=took)
    elif all(world.must_answer(one, sent) for one in adapters):
        world.fault("error", f"{face}: {status} {code} of what is whole", adapters[0], took=took)
    return None


def client(world, server, index):
    dice = random.Random(f"{world.seed}:{index}")
    weights = list(itertools.accumulate(1 / (rank + 1) ** 0.8 for rank in range(len(world.adapters))))
    while not world.over.wait(dice.expovariate(20)):
        face, tokens = dice.choice(FACES), dice.randint(len(LETTERS), 60)
        adapters = dice.choices(world.adapters, cum_weights=weights, k=3 if face == "adapters" else 1)
        # Beginnings that many prompts share, so that keys and values are found again.
        words = WORDS[3:3 + 16 * dice.randrange(3)] + dice.choices(WORDS[3:], k=dice.randint(1, 12))
        most = dice.randrange(1, tokens) if face == "left" else 0
        asked(world, server, face, adapters, " ".join(words), tokens, most)


def changer(world, index):
    dice = random.Random(f"{world.seed}:changer:{index}")
    while not world.over.wait(dice.expovariate(1)):
        one = dice.choice(world.adapters)
        if not one.busy.acquire(blocking=False):
            continue
        whole = one.past[-1][1] == "whole"
        step = dice.choice(["replace"] * 3 + ["remove", "corrupt"] if whole else ["replace", "restore"])
        try:
            getattr(world, step)(one, dice)
            world.count(f"changed: {step}")
        except OSError as error:
            world.fault("other", f"{step}: {error.strerror}", one)
        finally:
            one.busy.release()


def watch(world, server, seen):
    while not world.over.wait(0.5):
        try:
            device = server.residency()
        except (OSError, http.client.HTTPException, ValueError) as error:
            world.fault("no answer", f"residency: {error!r}")
            continue
        taken, adapters = device["charged_bytes"] + device["reserved_bytes"], len(adapters_of(device))
        most = {"bytes": taken, "adapters": adapters, "looks": seen["looks"] + 1}
        seen |= {name: max(seen[name], level) for name, level in most.items()}
        if taken > device["budget_bytes"]:
            world.fault("bytes", "more than the budget", taken=taken, budget=device["budget_bytes"])


def each(world, server, when=None):
    """Asks every adapter, which has to answer as its newest version where it is said when."""
    ask = lambda one: asked(world, server, "TargetModel", [one], "w1 w2", len(LETTERS))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, world.adapters))
    for one, texts in zip(world.adapters, answers):
        wanted = [letter + digit for letter, digit in zip(LETTERS, spelling(one.number, one.version))]
        if when and (not texts or texts[0].split() != wanted):
            world.fault("answer", f"not its newest version {when}", one, texts=texts)


def budget_for(binary, world):
    """The base and a fifth of the adapters; before its load a base is promised more than it takes."""
    server = Server(binary, world.store, 1 << 30)
    try:
        targets = ["base"] + [one.name for one in world.adapters]
        statuses = [server.admin_call("/admin/v1/load", target)[0] for target in targets]
        device = server.residency()
        theirs = sum(sum(it["bytes"].values()) for it in adapters_of(device))
        if set(statuses) != {200} or len(adapters_of(device)) != len(world.adapters):
            raise SystemExit(f"loads answered {set(statuses)}")
        return device["charged_bytes"] - theirs + max(theirs // 5, 2 * MIB)
    finally:
        server.stop()


def churn(world, server, minutes):
    seen = collections.Counter()
    threads = [threading.Thread(target=client, args=(world, server, at)) for at in range(CLIENTS)]
    threads += [threading.Thread(target=changer, args=(world, at)) for at in range(CHANGERS)]
    threads.append(threading.Thread(target=watch, args=(world, server, seen)))
    for thread in threads:
        thread.start()
    try:
        time.sleep(minutes * 60)
    finally:
        world.over.set()
        for thread in threads:
            thread.join()
    return dict(seen)


def quiesce(world, server):
    """Mends all, and has each answer as what it is now. The bytes then, and when all are unloaded."""
    dice = random.Random(world.seed)
    for one in world.adapters:
        if one.past[-1][1] != "whole":
            world.replace(one, dice, "at once")
    for when, wait in [(None, SETTLE + TTL + REFRESH), ("at the end", SETTLE + TTL + REFRESH + LOADING)]:
        time.sleep(wait)
        each(world, server, when)
    end = server.levels()
    for target in [one.name for one in world.adapters] + ["base"]:
        server.admin_call("/admin/v1/unload", target)
    return end, server.levels()


def measure(binary, folder, options):
    world, dice = World(folder, options.adapters, options.seed), random.Random(options.seed)
    for one in world.adapters:
        world.replace(one, dice, "at once")
    budget = budget_for(binary, world)
    server = Server(binary, world.store, budget)
    try:
        each(world, server, "at the start")
        start, before = server.levels(), server.counters()
        seen = churn(world, server, options.minutes)
        counters = server.counters() - before
        end, empty = quiesce(world, server)
        beside = [at["anonymous_bytes"] - at["charged_bytes"] for at in (start, end)]
        made = next(world.versions) - world.first - len(world.adapters)
        if beside[1] - beside[0] > WITNESS + BEGINNINGS + PLANS + REMEMBERED * min(VERSIONS, made):
            world.fault("bytes", "memory that nothing accounts for", grown=beside[1] - beside[0])
        if end["leases"] or empty["adapters"] or empty["charged_bytes"]:
            world.fault("bytes", "something stayed", end=end, empty=empty)
    finally:
        server.stop()
    if server.process.returncode != 0:
        world.fault("other", f"the server ended with {server.process.returncode}")
    return {
        "minutes": options.minutes, "adapters": options.adapters, "seed": options.seed,
        "date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "clients": CLIENTS, "changers": CHANGERS,
        "seconds": {"settle": SETTLE, "ttl": TTL, "refresh": REFRESH, "loading": LOADING, "pause": PAUSE},
        "counts": dict(sorted(world.counts.items())), "stale": world.stale, "versions": made,
        "residency": dict(sorted(counters.items())), "budget_bytes": budget,
        "seen": seen, "bytes": {"at the start": start, "at the end": end, "all unloaded": empty},
        "wrong": world.wrong[:100],
    }


def table(found):
    counts, residency, stale = collections.Counter(found["counts"]), found["residency"], found["stale"]

    def of(begin, source=counts):
        named = [(name[len(begin):], count) for name, count in source.items() if name.startswith(begin)]
        return f"{sum(count for _, count in named):,}: " + ", ".join(f"{name} {count:,}" for name, count in named)

    def staleness(kind):
        return (f"{counts[f'stale after {kind}']:,}; the longest {stale[kind][0]:.2f} s after it, "
                f"{stale[kind][1]:.2f} s after the first request that could tell")

    rows = [("requests answered", of("answered: "))]
    rows += [(f"refused while {what}", of(f"refused while {kind}: ")) for kind, what in [
        ("gone", "removed"), ("half", "half written"), ("corrupt", "corrupt"), ("whole", "just whole again")]]
    rows += [("changes", f"{of('changed: ')}; {found['versions']:,} versions were made"),
             ("corruptions", of("corrupted: ")), ("loads", f"{residency.get('loads', 0):,}"),
             ("evictions", of("evictions ", residency)),
             ("where requests found their adapter", of("grants ", residency)),
             ("texts of the last whole version, by what its folder held", of("text while ")),
             ("texts of an older one after a replacement", staleness("whole")),
             ("texts after a removal", staleness("gone")),
             ("budget", f"{found['budget_bytes'] / MIB:.1f} MiB; {found['seen']['looks']} looks saw at most "
                        f"{found['seen']['bytes'] / MIB:.1f} MiB and {found['seen']['adapters']} adapters")]
    rows += [(when, f"{at['charged_bytes'] / MIB:.1f} MiB charged, {at['anonymous_bytes'] / MIB:.1f} MiB "
                    f"anonymous, {at['adapters']} adapters") for when, at in found["bytes"].items()]
    rows += [(f"**{what}**", counts[f"wrong: {kind}"]) for what, kind in [
        ("wrong answers", "answer"), ("unexplained errors", "error"), ("5xx", "5xx"), ("no answer", "no answer"),
        ("wrong bytes", "bytes"), ("other faults", "other")]]
    return "\n".join([
        "# Adapters that change while they are asked for", "",
        f"`churn.py BINARY OUTPUT --minutes {found['minutes']:g} --adapters {found['adapters']} --seed "
        f"{found['seed']}`, {found['date']}, {found['cores']} cores, {CLIENTS} clients, {CHANGERS} changers. "
        f"A change counts after {SETTLE + TTL + REFRESH} s (settling {SETTLE}, listing {TTL}, look-ups "
        f"{REFRESH}), and from the first request thereafter on within {LOADING} s for the load; a removal is "
        f"looked at again {SETTLE + REFRESH} s later.", "",
        "| | |", "|---|---|", *[f"| {name} | {value} |" for name, value in rows], ""])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="churn-") as folder:
        found = measure(options.binary, pathlib.Path(folder), options)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "churn.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.output / "README.md").write_text(table(found))
    print(table(found))
    raise SystemExit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
