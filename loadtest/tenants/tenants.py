"""Many tenants, their policies rewritten all the while: nobody is answered by another's model, nothing
of anybody's prompt appears anywhere else, and the ledger adds up to what clients counted.

A hundred tenants, each with two classifiers of its own that sign every answer, an alias `chat` that
stands for one or the other, and some of eight shared ones; a shared decoder that all may ask.
Every prompt carries a canary of its tenant. Clients ask what is theirs, what may be theirs at
times, what never is and what does not exist; meanwhile the settings' file is rewritten at
random: grants of shared models, aliases, tenants that come and go.

An answer is wrong where
- a model's signature is not the one that the tenant may have under any settings that were in force
  between the request and its answer;
- another tenant's model is answered otherwise than one that does not exist, but for its name;
- it, its headers, a list, metrics, admin routes, the live events, logs or the ledger hold a canary
  that is not the asker's own. (Logs, metrics and the ledger may hold none at all.)

usage: tenants.py --binary target/release/roundhouse --out DIR [--requests 1000000] [--tenants 100]
"""

import argparse
import collections
import http.client
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time

from stage import SETTINGS, Served, decoders, keys, replace, signed, usage, write_model

SHARED = [f"shared/s{number}" for number in range(8)]
DECODER = "shared/gen"
PATH = "/endpoints/default/invocations"
CANARY = re.compile(rb"canary[0-9]{4}x[0-9a-f]{8}")
# Files per process that clients' threads share; more only wait for the same two cores.
THREADS = 8


def canary(number: int, rng: random.Random) -> str:
    return f"canary{number:04}x{rng.getrandbits(32):08x}"


class Policies:
    """Settings that follow each other; which tenant may use what under each."""

    def __init__(self, count: int, seed: int):
        self.count, self.rng, self.version = count, random.Random(seed), 0

    def next(self) -> tuple[str, dict]:
        """The text of some settings, and what they grant."""
        self.version += 1
        lines, grants = [], {}
        for number in range(self.count):
            tenant = f"t{number:03}"
            # One in twenty is not listed now: it may use nothing.
            if self.rng.random() < 0.05:
                grants[number] = {"listed": False, "shared": [], "chat": 0}
                continue
            shared = [name for name in SHARED if self.rng.random() < 0.4]
            chat = self.rng.randrange(2)
            grants[number] = {"listed": True, "shared": shared, "chat": chat}
            invoke = [f"{tenant}/**", DECODER, *shared]
            lines.append(f'[[tenant]]\nname = "{tenant}"\ninvoke = {json.dumps(invoke)}\n'
                         f"share = {self.rng.choice([0.5, 1.0, 2.0])}\n"
                         f'[[alias]]\ntenant = "{tenant}"\nname = "chat"\ntarget = "{tenant}/m{chat}"\n')
        return "".join(lines), grants


class Turns:
    """Which settings were in force when: a request is held against all that were between its ends."""

    def __init__(self, first: dict):
        self.lock = threading.Lock()
        # [from (may be in force), until (surely not any more), grants]
        self.list = [[0.0, float("inf"), first]]

    def begins(self, grants: dict) -> None:
        with self.lock:
            self.list.append([time.monotonic(), float("inf"), grants])

    def holds(self) -> None:
        """What was before is in force no longer."""
        with self.lock:
            now = time.monotonic()
            for turn in self.list[:-1]:
                turn[1] = min(turn[1], now)


def asks(number: int, count: int, rng: random.Random) -> tuple[str, str]:
    """What a tenant asks for next, and why."""
    draw = rng.random()
    if draw < 0.45:
        return "own", f"t{number:03}/m{rng.randrange(2)}"
    if draw < 0.60:
        return "alias", "chat"
    if draw < 0.75:
        return "shared", rng.choice(SHARED)
    if draw < 0.88:
        other = (number + 1 + rng.randrange(count - 1)) % count
        return "others", f"t{other:03}/m{rng.randrange(2)}"
    if draw < 0.94:
        return "none", f"t{rng.randrange(count):03}/nothing{rng.randrange(100)}"
    if draw < 0.98:
        return "list", ""
    return "decoder", DECODER


def client(index, address, secrets, count, requests, seed, log):
    """One process: asks, and writes what came to a file for the judge."""
    rng = random.Random(f"{seed}:{index}")
    lock, left = threading.Lock(), [requests]

    def work(thread):
        own = random.Random(f"{seed}:{index}:{thread}")
        connection = http.client.HTTPConnection(address, timeout=70)
        with open(f"{log}.{thread}", "w", encoding="utf-8") as out:
            while True:
                with lock:
                    if left[0] == 0:
                        break
                    left[0] -= 1
                number = own.randrange(count)
                why, target = asks(number, count, own)
                secret = canary(number, own)
                row = ask(connection, secrets[f"t{number:03}"], why, target, secret)
                if row is None:
                    connection.close()
                    connection = http.client.HTTPConnection(address, timeout=70)
                    row = {"status": 0}
                row |= {"number": number, "why": why, "target": target, "canary": secret}
                out.write(json.dumps(row) + "\n")

    del rng
    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ask(connection, key, why, target, secret):
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    method, path, body = "POST", PATH, json.dumps({"inputs": f"hello {secret} world"})
    if why == "list":
        method, path, body = "GET", "/v1/models", None
    elif why == "decoder":
        path = "/v1/completions"
        body = json.dumps({"model": target, "prompt": f"{'once upon a time ' * 4}{secret} ",
                           "max_tokens": 4, "temperature": 0, "ignore_eos": True})
    else:
        headers["X-Amzn-SageMaker-Target-Model"] = target
    begun = time.monotonic()
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        got = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    told = " ".join(f"{name}: {value}" for name, value in answer.getheaders())
    row = {"begun": begun, "ended": time.monotonic(), "status": answer.status,
           "sent": len(body or ""), "got": len(got)}
    found = {it.decode() for it in CANARY.findall(got + told.encode())}
    if found:
        row["canaries"] = sorted(found)
    if answer.status != 200:
        row["body"] = got.decode(errors="replace")[:400]
    elif why == "list":
        row["listed"] = [model["id"] for model in as_json(got).get("data", [])]
    elif why == "decoder":
        row["usage"] = as_json(got).get("usage")
    else:
        row["said"] = signed.said(got)
    return row


def as_json(text):
    try:
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    except ValueError:
        return {}


class Judge:
    """Holds every answer against what could be right."""

    def __init__(self, turns):
        self.turns, self.wrong = turns, []
        self.counts = collections.Counter()
        # By tenant: answered by a model, bytes of these, tokens.
        self.served = collections.defaultdict(lambda: [0, 0, 0, 0, 0])
        self.missing = set()

    def fault(self, what, row):
        self.counts["wrong"] += 1
        if len(self.wrong) < 50:
            self.wrong.append({"what": what, **row})

    def look(self, row):
        number, why, target = row["number"], row["why"], row["target"]
        self.counts[f"{why} {row['status']}"] += 1
        if row["status"] == 0:
            return self.fault("no answer", row)
        others = [it for it in row.get("canaries", []) if it != row["canary"]]
        if others:
            self.fault("a canary of another request", row)
        grants = [grants[number] for begins, until, grants in self.turns
                  if begins <= row["ended"] and row["begun"] <= until]
        if why == "list" and row["status"] == 200:
            may = {"chat", DECODER, *(f"t{number:03}/m{it}" for it in (0, 1)),
                   *(name for grant in grants for name in grant["shared"])}
            if set(row["listed"]) - may:
                self.fault("a list shows what is not the tenant's", row)
            return None
        if row["status"] == 200:
            return self.answered(row, number, why, target, grants)
        if row["status"] in (400, 404) and "not found" in row["body"]:
            self.refused(row, why, target, grants)
        elif row["status"] not in (429, 503):
            self.fault("an odd status", row)
        return None

    def answered(self, row, number, why, target, grants):
        of_tenant = self.served[number]
        of_tenant[0] += 1
        of_tenant[1] += row["sent"]
        of_tenant[2] += row["got"]
        if why == "decoder":
            used = row.get("usage") or {}
            of_tenant[3] += used.get("prompt_tokens", 0)
            of_tenant[4] += used.get("completion_tokens", 0)
            return
        right = {
            "own": [target],
            "alias": [f"t{number:03}/m{grant['chat']}" for grant in grants if grant["listed"]],
            "shared": [target] if any(target in grant["shared"] for grant in grants) else [],
        }.get(why, [])
        if why == "own" and not any(grant["listed"] for grant in grants):
            right = []
        if row["said"] not in [signed.signature(name, 1) for name in right]:
            self.fault("an answer that is not the tenant's", row)

    def refused(self, row, why, target, grants):
        text = row["body"].replace(target, "{}")
        if "endpoint" in text and "model" not in text:
            # For whom nothing is listed there is no endpoint either.
            if all(grant["listed"] for grant in grants):
                self.fault("the endpoint was refused", row)
            return
        # Where it is not the tenant's, it must be said as of what does not exist.
        face = "openai" if why in ("decoder", "list") else "sagemaker"
        self.missing.add((face, row["status"], text))
        always = {
            "own": all(grant["listed"] for grant in grants),
            "alias": all(grant["listed"] for grant in grants),
            "shared": all(target in grant["shared"] for grant in grants),
            "decoder": all(grant["listed"] for grant in grants),
        }.get(why, False)
        if always:
            self.fault("what is the tenant's was refused", row)


def reloads(server, work, policies, turns, more, every, stop, told):
    """Rewrites the settings at random times, and waits until they are in force."""
    rng = random.Random(7)
    while not stop.wait(rng.uniform(0.2, 1.8) * every):
        text, grants = policies.next()
        turns.begins(grants)
        replace(f"{work}/roundhouse.toml", SETTINGS.format(work=work, more=more) + text)
        connection = http.client.HTTPConnection(server.admin, timeout=60)
        connection.request("POST", "/admin/v1/reload")
        answer = as_json(connection.getresponse().read())
        connection.close()
        if answer.get("outcome") not in ("applied", "unchanged"):
            told["refused"] = answer
            break
        turns.holds()
        told["reloads"] += 1


def peeks(server, targets, stop, told):
    """What operators and scrapers are told meanwhile: no canary may be in it."""
    rng = random.Random(11)
    paths = ["/metrics", "/admin/v1/residency", "/admin/v1/usage", "/admin/v1/reload"]
    while not stop.wait(0.5):
        target = rng.choice(targets)
        for path in [*paths, f"/admin/v1/explain?endpoint=default&target={target}"]:
            body = get(server.admin, path)
            told["looked"] += len(body)
            told["found"] += len(CANARY.findall(body))


def events(server, stop, told):
    """The live events, for as long as the test goes on."""
    connection = http.client.HTTPConnection(server.admin, timeout=5)
    connection.request("GET", "/admin/v1/events")
    answer = connection.getresponse()
    held = b""
    while not stop.is_set():
        try:
            piece = answer.read1(65536)
        except OSError:
            continue
        if not piece:
            break
        told["events"] += len(piece)
        told["found"] += len(CANARY.findall(held + piece))
        held = piece[-64:]


def get(address, path):
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", path)
    body = connection.getresponse().read()
    connection.close()
    return body


def make(work, count):
    for number in range(count):
        for one in (0, 1):
            target = f"t{number:03}/m{one}"
            write_model(work, target, signed.classifier(target, 1, 200, target))
    for target in SHARED:
        write_model(work, target, signed.classifier(target, 1, 200, target))
    write_model(work, DECODER, decoders.files(1))


def compared(ledger, judge):
    """The ledger's sums by tenant against what clients counted, for requests that a model answered."""
    sums = collections.defaultdict(lambda: [0, 0, 0, 0, 0])
    for row in ledger:
        # What was resident is its owner's, whoever asked.
        if not row.get("target") or not row["requests"]:
            continue
        of_tenant = sums[int(row["tenant"][1:])]
        names = ("requests", "bytes_in", "bytes_out")
        for place, name in enumerate(names):
            of_tenant[place] += row[name]
        if row["target"] == DECODER:
            of_tenant[3] += row["tokens_in"]
            of_tenant[4] += row["tokens_out"]
    tenants = sorted({*sums, *judge.served})
    return [{"tenant": it, "ledger": sums[it], "clients": judge.served[it]}
            for it in tenants if sums[it] != judge.served[it]]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between reloads, on average")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    work = tempfile.mkdtemp(prefix="tenants-")
    make(work, options.tenants)
    names = [f"t{number:03}" for number in range(options.tenants)]
    secrets = keys(options.binary, work, names)
    more = f'[auth]\nkeys = "{work}/keys.json"\n'
    policies = Policies(options.tenants, options.seed)
    text, grants = policies.next()
    replace(f"{work}/roundhouse.toml", SETTINGS.format(work=work, more=more) + text)
    server = Served(options.binary, f"{work}/roundhouse.toml", f"{work}/log.txt", {})
    server.start()
    turns, stop = Turns(grants), threading.Event()
    told = {"reloads": 0, "looked": 0, "found": 0, "events": 0}
    targets = [f"{name}/m0" for name in names] + SHARED
    beside = [
        threading.Thread(target=reloads, args=(server, work, policies, turns, more, options.every, stop, told)),
        threading.Thread(target=peeks, args=(server, targets, stop, told)),
        threading.Thread(target=events, args=(server, stop, told)),
    ]
    for thread in beside:
        thread.start()
    begun = time.monotonic()
    each = options.requests // options.processes
    # Not forked: threads run already.
    spawn = multiprocessing.get_context("spawn")
    asking = [spawn.Process(target=client, args=(
        index, server.data, secrets, options.tenants, each, options.seed, f"{work}/seen.{index}"))
        for index in range(options.processes)]
    for process in asking:
        process.start()
    for process in asking:
        process.join()
    took = time.monotonic() - begun
    stop.set()
    for thread in beside:
        thread.join()
    metrics = server.metrics()
    status, _ = server.terminate(60)

    judge = Judge(turns.list)
    for name in sorted(os.listdir(work)):
        if name.startswith("seen."):
            with open(os.path.join(work, name), encoding="utf-8") as file:
                for line in file:
                    judge.look(json.loads(line))
    looked = sum(count for name, count in judge.counts.items() if name != "wrong")
    if looked != each * options.processes:
        judge.fault("requests are missing from what was seen", {"seen": looked})
    for name in ("log.txt", "access.log", "usage.jsonl", "roundhouse.toml"):
        with open(os.path.join(work, name), "rb") as file:
            told["found"] += len(CANARY.findall(file.read()))
    shapes = sorted(judge.missing)
    # One for each face.
    if len(shapes) > len({face for face, _, _ in shapes}):
        judge.fault("what is missing and what is not the tenant's are told apart", {"shapes": shapes[:10]})
    ledger = usage(options.binary, work)
    differ = compared(ledger["usage"], judge)
    result = {
        "requests": each * options.processes, "tenants": options.tenants, "seconds": round(took, 1),
        "per_second": round(each * options.processes / took), "reloads": told["reloads"],
        "reload_refused": told.get("refused"), "exit": status,
        "bytes_searched": told["looked"] + told["events"], "canaries_found": told["found"],
        "wrong": judge.counts["wrong"], "ledger_differs": len(differ),
        "answered_by_models": sum(it[0] for it in judge.served.values()),
        "missing_shapes": shapes[:3], "counts": dict(sorted(judge.counts.items())),
        "examples": judge.wrong[:20], "ledger_examples": differ[:5],
        "loads": metrics.get("roundhouse_residency_loads_total", 0),
    }
    os.makedirs(options.out, exist_ok=True)
    with open(os.path.join(options.out, "tenants.json"), "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    print(json.dumps({key: result[key] for key in result if not key.endswith("examples")}, indent=1))
    bad = result["wrong"] or result["canaries_found"] or differ or status != 0 or result["reload_refused"]
    if bad:
        print(f"the work is kept in {work}", file=sys.stderr)
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
