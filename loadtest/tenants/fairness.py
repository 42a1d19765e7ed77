"""How served tokens are shared where tenants ask for more of one model than it can give.

trace   Twenty tenants of one shared decoder, each with the arrival pattern of one of the busiest
        groups of the Alibaba trace, time compressed so that together they ask for more than there is.
        What each is served is held against its fair share: what it would get if at every moment all
        that wait shared equally (max-min, as of water). Jain's index over served / fair share.
flood   Tenant `noisy` asks as much as it can; tenant `calm` steadily, less than its half. Calm's p99
        beside that of a window without noise, and what calm gets of what it asks.
both    Both ask as much as they can, by shares of 3 and 1: calm's share of served tokens beside 0.75.

usage: fairness.py --binary target/release/roundhouse --out DIR [--trace FILE] [--seconds 60] [--rounds 3]
"""

import argparse
import collections
import csv
import datetime
import http.client
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time

from stage import SETTINGS, Served, decoders, keys, replace, write_model

MODEL = "shared/gen"
TENANTS = 20
TOKENS = 24


def arrivals(path, seconds, rate, rng):
    """Times for each of twenty tenants, `rate` a second together."""
    groups = collections.defaultdict(list)
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            at = datetime.datetime.fromisoformat(row["gmt_create"]).timestamp()
            groups[row["groupId"]].append(at)
    busiest = sorted(groups.values(), key=len, reverse=True)[:TENANTS]
    first, last = min(map(min, busiest)), max(map(max, busiest))
    plans = []
    for times in busiest:
        # Where in the trace they lie, not how many: each tenant asks for a twentieth on average, and
        # the busier ones for more, by the root of how much busier they are.
        plans.append((len(times) ** 0.5, [(at - first) / (last - first) * seconds for at in times]))
    weight = sum(it for it, _ in plans)
    found = []
    for part, times in plans:
        count = max(1, round(rate * seconds * part / weight))
        # A second's jitter, since the trace is thinner than what is asked here.
        drawn = (rng.choice(times) + rng.uniform(-0.5, 0.5) for _ in range(count))
        found.append(sorted(min(max(at, 0.0), seconds) for at in drawn))
    return found


def fluid(plans, each, capacity, seconds, step=0.05):
    """What each would be served by the end if work were water: at every moment the backlogs share what
    there is, nobody gets more than it waits for, and who wants more gets as much as the others."""
    waiting, served = [0.0] * len(plans), [0.0] * len(plans)
    left = [iter(plan) for plan in plans]
    ahead = [next(plan, None) for plan in left]
    at = 0.0
    while at < seconds:
        for index, plan in enumerate(left):
            while ahead[index] is not None and ahead[index] <= at:
                waiting[index] += each
                ahead[index] = next(plan, None)
        room = capacity * step
        order = sorted(range(len(plans)), key=lambda it: waiting[it])
        for place, index in enumerate(order):
            given = min(waiting[index], room / (len(order) - place))
            waiting[index] -= given
            served[index] += given
            room -= given
        at += step
    return served


def jain(values):
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


class Client:
    """One tenant: asks at planned times, or as fast as it is answered, over some connections."""

    def __init__(self, address, key, plan, threads, seconds, seed):
        self.address, self.key, self.seconds = address, key, seconds
        self.plan, self.rng = (iter(plan) if plan is not None else None), random.Random(seed)
        self.asked = len(plan) if plan is not None else 0
        self.served, self.took, self.other = 0, [], collections.Counter()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.work) for _ in range(threads)]

    def start(self, begun):
        self.begun = begun
        for thread in self.threads:
            thread.start()

    def join(self):
        for thread in self.threads:
            thread.join()

    def work(self):
        connection = http.client.HTTPConnection(self.address, timeout=120)
        while True:
            with self.lock:
                at = next(self.plan, None) if self.plan else time.perf_counter() - self.begun
                word = f"{self.rng.getrandbits(24):06x}"
            if at is None or at >= self.seconds:
                break
            while (wait := self.begun + at - time.perf_counter()) > 0:
                time.sleep(wait)
            if time.perf_counter() - self.begun >= self.seconds:
                break
            while self.ask(connection, at, word):
                pass
        connection.close()

    def ask(self, connection, at, word):
        body = json.dumps({"model": MODEL, "prompt": f"{word} tell me", "max_tokens": TOKENS,
                           "ignore_eos": True, "temperature": 0})
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", body, headers)
        answer = connection.getresponse()
        got = answer.read()
        ended = time.perf_counter() - self.begun
        if answer.status != 200:
            self.other[answer.status] += 1
            # As a client that is told to come back.
            time.sleep(0.05)
            return ended < self.seconds
        with self.lock:
            self.took.append(ended - at)
            if ended <= self.seconds:
                used = json.loads(got)["usage"]
                self.served += used["prompt_tokens"] + used["completion_tokens"]
        return False


def window(address, clients):
    begun = time.perf_counter() + 0.5
    for client in clients:
        client.start(begun)
    for client in clients:
        client.join()


def p99(values):
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))] * 1e3 if values else 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--trace", default="../shared/traces/alibaba_gentd26_lora_requests.csv")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    work = tempfile.mkdtemp(prefix="fairness-")
    write_model(work, MODEL, decoders.files(1))
    names = [f"t{number:02}" for number in range(TENANTS)]
    secrets = keys(options.binary, work, [*names, "calm", "noisy"])
    text = SETTINGS.format(work=work, more=f'[auth]\nkeys = "{work}/keys.json"\n')
    for name in [*names, "calm", "noisy"]:
        share = 3.0 if name == "calm" else 1.0
        text += f'[[tenant]]\nname = "{name}"\ninvoke = ["{MODEL}"]\nshare = {share}\n'
    replace(f"{work}/roundhouse.toml", text)
    server = Served(options.binary, f"{work}/roundhouse.toml", f"{work}/log.txt", {})
    server.start()
    rng = random.Random(3)

    def client(name, plan, threads, seconds=options.seconds):
        return Client(server.data, secrets[name], plan, threads, seconds, name)

    # What it can give: as many tokens as two tenants get that ask as much as they can.
    both = [client(name, None, 40, 15.0) for name in names[:2]]
    window(server.data, both)
    capacity = sum(it.served for it in both) / 15.0
    each = max(it.served for it in both) / max(1, len(max(both, key=lambda it: it.served).took))
    found = {"capacity_tokens_per_s": round(capacity), "tokens_per_request": round(each, 1), "rounds": []}
    for number in range(options.rounds):
        row = {"round": number}
        if os.path.exists(options.trace):
            row["trace"] = traced(client, names, arrivals(options.trace, options.seconds, 1.6 * capacity / each, rng), each)
        quiet = capacity / each * 0.2
        plan = sorted(rng.uniform(0, options.seconds) for _ in range(int(quiet * options.seconds)))
        alone = client("calm", plan, 16)
        window(server.data, [alone])
        calm, noisy = client("calm", plan, 16), client("noisy", None, 160)
        window(server.data, [calm, noisy])
        row["flood"] = {"alone_p99_ms": round(p99(alone.took), 1), "calm_p99_ms": round(p99(calm.took), 1),
                        "noisy_p99_ms": round(p99(noisy.took), 1), "calm_other": dict(calm.other),
                        "calm_served_of_asked": round(len(calm.took) / max(1, len(plan)), 3),
                        "noisy_served_tokens": noisy.served}
        calm, noisy = client("calm", None, 120), client("noisy", None, 120)
        window(server.data, [calm, noisy])
        row["both"] = {"calm_share": round(calm.served / (calm.served + noisy.served), 3), "wanted": 0.75}
        found["rounds"].append(row)
        print(json.dumps(row), flush=True)
    server.terminate(60)
    jains = [row["trace"]["jain"] for row in found["rounds"] if "trace" in row]
    found["jain_median"] = round(statistics.median(jains), 3) if jains else "no trace here"
    found["calm_share_median"] = statistics.median(row["both"]["calm_share"] for row in found["rounds"])
    os.makedirs(options.out, exist_ok=True)
    with open(os.path.join(options.out, "fairness.json"), "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)
    print(json.dumps({key: value for key, value in found.items() if key != "rounds"}))
    shutil.rmtree(work)
    return 0


def traced(client, names, plans, each):
    clients = [client(name, plan, 16) for name, plan in zip(names, plans, strict=True)]
    window(None, clients)
    served = [it.served for it in clients]
    demands = [it.asked * each for it in clients]
    seconds = clients[0].seconds
    shares = fluid(plans, each, sum(served) / seconds, seconds)
    ratio = [got / share for got, share in zip(served, shares, strict=True) if share]
    refused = collections.Counter()
    for it in clients:
        refused.update(it.other)
    return {"jain": round(jain(ratio), 4), "asked_tokens": round(sum(demands)), "served_tokens": sum(served),
            "least_of_fair": round(min(ratio), 3), "most_of_fair": round(max(ratio), 3),
            "jain_of_tokens": round(jain(served), 4), "refused": dict(refused)}


if __name__ == "__main__":
    sys.exit(main())
