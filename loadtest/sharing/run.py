"""What ten fine-tunes of one base take and how fast they load, with sharing and without.

    python run.py BINARY STORE OUTPUT

STORE is what make.py made. Writes OUTPUT/sharing.json and OUTPUT/sharing.md. Standard library
only; servers listen on loopback and are stopped at the end.
"""

import json
import pathlib
import random
import statistics
import struct
import sys
import tarfile
import tempfile
import time
import urllib.parse
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import started

PROMPTS = ["The quick brown fox", "Once upon a time", "0123456789"]
MIB = 1 << 20


class Server(started.Server):
    def __init__(self, binary, store, share):
        self.cache = tempfile.TemporaryDirectory(prefix="sharing-cache-")
        words = ["--store", f"file://{store}/", "--cache-dir", self.cache.name, "--memory", "8GiB",
                 "--access-log", "off"]
        super().__init__(binary, words, {"ROUNDHOUSE_MEMORY_SHARE_TENSORS": share})

    def call(self, url, body=None, headers=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            url, data, {"content-type": "application/json"} | (headers or {}))
        with urllib.request.urlopen(request, timeout=300) as answer:
            text = answer.read()
        return json.loads(text) if text.startswith((b"{", b"[")) else text.decode()

    def command(self, name, target, **more):
        body = {"endpoint": "default", "target": target} | more
        return self.call(f"{self.admin_url}/admin/v1/{name}", body)

    def answers(self, target):
        url, header = f"{self.data_url}/endpoints/default/invocations", {
            "x-amzn-sagemaker-target-model": target}
        parameters = {"max_new_tokens": 24, "details": True, "do_sample": False}
        said = [self.call(url, {"inputs": prompt, "parameters": parameters}, header)
                for prompt in PROMPTS]
        return [[(token["id"], token["logprob"]) for token in (one[0] if isinstance(one, list)
                else one)["details"]["tokens"]] for one in said]

    def charged(self):
        return self.call(f"{self.admin_url}/admin/v1/residency")["devices"][0]["charged_bytes"]

    def freed(self, target):
        query = urllib.parse.urlencode({"endpoint": "default", "target": target})
        told = self.call(f"{self.admin_url}/admin/v1/explain?{query}")["decisions"]
        return [one["bytes"] for one in told if one["action"] == "unloaded"][-1]

    def read_seconds(self):
        text = self.call(f"{self.admin_url}/metrics")
        lines = [line for line in text.splitlines()
                 if line.startswith("roundhouse_load_stage_seconds_sum") and '"read"' in line]
        return sum(float(line.split()[-1]) for line in lines)

    def on_disk(self):
        """Blocks of the files in the cache, each file once, when sharing there has come to rest."""
        usage, still = None, 0
        while still < 5:
            now = self.call(f"{self.admin_url}/admin/v1/residency")["disk"]
            usage, still = now, still + 1 if now == usage else 0
            time.sleep(0.5)
        paths = pathlib.Path(self.cache.name, "artefacts").rglob("*")
        found = (path.lstat() for path in paths if path.is_file())
        return {"charged": usage["used_bytes"],
                "blocks": sum({one.st_ino: one.st_blocks * 512 for one in found}.values())}

    def stop(self):
        super().stop()
        self.cache.cleanup()


def contents(store, target):
    """Bytes in memory (float32) by what they are, from the file itself: base or own."""
    if target.endswith(".tar.gz"):
        with tarfile.open(store / target) as archive:
            raw = archive.extractfile("model.safetensors").read()
    else:
        raw = (store / target / "model.safetensors").read_bytes()
    length, = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    found = {}
    for name, at in header.items():
        if name != "__metadata__":
            begin, end = at["data_offsets"]
            found[hash((name, raw[8 + length + begin:8 + length + end]))] = 2 * (end - begin)
    return found


def load(server, target):
    """Wall seconds of the operator's load, and of its read stage."""
    read, began = server.read_seconds(), time.monotonic()
    server.command("load", target)
    return time.monotonic() - began, server.read_seconds() - read


def bytes_and_answers(binary, store, targets):
    by_target = {target: contents(store, target) for target in targets}
    union = {}
    for found in by_target.values():
        union |= found
    expected = sum(union.values())
    alone = sum(sum(found.values()) for found in by_target.values())
    apart, answers = Server(binary, store, "off"), {}
    for target in targets:
        answers[target] = apart.answers(target)
        apart.command("unload", target)
    disk = {"off": apart.on_disk()}
    apart.stop()
    server = Server(binary, store, "all")
    start, steps = server.anonymous(), []
    for target in targets:
        load(server, target)
        steps.append({"target": target, "charged": server.charged(),
                      "anonymous": server.anonymous() - start})
    equal = sum(server.answers(target) == answers[target] for target in targets)
    answered = server.anonymous() - start
    disk["all"] = server.on_disk()
    orders = []
    for order in (targets, targets[::-1], random.Random(1).sample(targets, len(targets))):
        for target in order:
            load(server, target)
        left, rows = list(order), []
        for target in order:
            before, witness = server.charged(), server.anonymous()
            server.command("unload", target)
            left.remove(target)
            others = set().union(*(by_target[other] for other in left))
            own = sum(size for content, size in by_target[target].items()
                      if content not in others)
            rows.append({"target": target, "own_weights": own, "ledger": before - server.charged(),
                         "said": server.freed(target), "witness": witness - server.anonymous()})
        orders.append({"rows": rows, "charged_at_end": server.charged(),
                       "anonymous_at_end": server.anonymous() - start})
    server.stop()
    return {"expected_weights": expected, "unshared_weights": alone, "steps": steps,
            "anonymous_after_answers": answered, "equal_answers": equal, "orders": orders, "disk": disk}


def load_times(binary, store, targets, rounds):
    """Paired: each target by turns on both servers. The first target stays on both."""
    servers = {share: Server(binary, store, share) for share in ("off", "all")}
    keep, others = targets[0], targets[1:]
    pairs = {"digest": [], "known": []}
    # Nothing to share with and nothing known: what digesting costs.
    for _ in range(rounds):
        for target in others[:5]:
            pair = {}
            for share in random.sample(list(servers), 2):
                pair[share] = load(servers[share], target)
                servers[share].command("unload", target, purge=True)
            pairs["digest"].append(pair)
    for server in servers.values():
        for target in targets:
            load(server, target)
        for target in others:
            server.command("unload", target)
    # The base is there and the content is known.
    for _ in range(rounds):
        for target in others:
            pair = {}
            for share in random.sample(list(servers), 2):
                pair[share] = load(servers[share], target)
                servers[share].command("unload", target)
            pairs["known"].append(pair)
    for server in servers.values():
        server.stop()
    return pairs


def summary(pairs, at):
    off, shared = ([pair[share][at] for pair in pairs] for share in ("off", "all"))
    ratio = statistics.median(b / a for a, b in zip(off, shared))
    return (f"{statistics.median(off) * 1e3:.0f} ms | {statistics.median(shared) * 1e3:.0f} ms"
            f" | {ratio:.2f} | {len(pairs)}")


def main():
    binary, store, output = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    targets = sorted(path.name for path in store.iterdir())
    found = bytes_and_answers(binary, store, targets)
    found["pairs"] = load_times(binary, store, targets, 3)
    output.mkdir(parents=True, exist_ok=True)
    (output / "sharing.json").write_text(json.dumps(found, indent=1) + "\n")
    mib = lambda size: f"{size / MIB:.1f}"
    lines = [
        f"- Weights by the files, in float32: {mib(found['unshared_weights'])} MiB unshared, "
        f"{mib(found['expected_weights'])} MiB base and differences.",
        f"- Equal answers (ids and log-probabilities of {len(PROMPTS)} prompts, 24 tokens each): "
        f"{found['equal_answers']} of {len(targets)}.",
        f"- Anonymous bytes after ten loads: {mib(found['steps'][-1]['anonymous'])} MiB, "
        f"{found['steps'][-1]['anonymous'] / found['expected_weights']:.3f} of base and differences; "
        f"after answers from all: {mib(found['anonymous_after_answers'])} MiB, "
        f"{found['anonymous_after_answers'] / found['expected_weights']:.3f}.",
        f"- On disk: {mib(found['disk']['off']['blocks'])} MiB in blocks without sharing, "
        f"{mib(found['disk']['all']['blocks'])} MiB with it "
        f"({mib(found['disk']['all']['charged'])} MiB charged).",
        "", "| loaded | charged MiB | anonymous MiB |", "|---|---:|---:|",
        *(f"| {step['target']} | {mib(step['charged'])} | {mib(step['anonymous'])} |"
          for step in found["steps"]),
    ]
    for number, order in enumerate(found["orders"], 1):
        lines += ["", f"Unloading, order {number}; at the end {order['charged_at_end']} B charged, "
                  f"{mib(order['anonymous_at_end'])} MiB anonymous more than at the start:", "",
                  "| unloaded | own weights by the files MiB | ledger MiB | explained MiB | "
                  "witness MiB |", "|---|---:|---:|---:|---:|"]
        lines += [f"| {row['target']} | {mib(row['own_weights'])} | {mib(row['ledger'])} | "
                  f"{mib(row['said'])} | {mib(row['witness'])} |" for row in order["rows"]]
    lines += ["", "| paired medians | off | all | all / off | pairs |", "|---|---:|---:|---:|---:|"]
    for kind, text in (("digest", "first load, nothing to share"),
                       ("known", "base loaded")):
        for at, what in ((0, "wall"), (1, "read stage")):
            # A first load fetches, too, which no sharing changes.
            if (kind, at) != ("digest", 0):
                lines.append(f"| {text}, {what} | {summary(found['pairs'][kind], at)} |")
    (output / "sharing.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
