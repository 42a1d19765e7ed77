"""Whether a tenant can tell another's model from one that does not exist.

    python hidden.py BINARY STORE OUTPUT [--samples 10000]

STORE is made here: a folder with small models of two tenants, whose models are loaded while it is
asked. On each face a tenant asks in turns, in random order, for a model that another has loaded (hidden) and
for one of the same length that is nowhere (missing). Bodies, statuses and headers must be equal but for the
request's id and date; times are held against each other by the tests of Kolmogorov-Smirnov and of Mann and
Whitney, and by the same tests of missing against missing, which says what chance does. Writes OUTPUT/hidden.json
and OUTPUT/hidden.md. Standard library only; the server listens on loopback and is stopped at the end.
"""

import argparse
import json
import math
import pathlib
import random
import re
import socket
import statistics
import struct
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from started import Server

TENANT_HEADER = "x-roundhouse-tenant"
HIDDEN, MISSING, OTHER = "evil/secret", "evil/nobody", "evil/absent"
VARY = {"x-amzn-requestid", "x-request-id", "date"}


def config(store, cache, proxy):
    return f"""version = 1
[listen]
data = "127.0.0.1:0"
admin = "127.0.0.1:0"
[memory]
budget = "256MiB"
[cache]
dir = "{cache}"
[log]
access = "off"
[store]
settle = "1ms"
{proxy}
[[tenant]]
name = "acme"
[[tenant]]
name = "evil"
[[endpoint]]
name = "default"
[[endpoint.mount]]
uri = "file://{store}/"
"""


def faces(target):
    """Method, path, headers and body of a request for a model, by face."""
    inputs = json.dumps({"inputs": "hello"})
    chat = json.dumps({"model": target, "messages": [{"role": "user", "content": "hi"}]})
    named = {"x-amzn-sagemaker-target-model": target}
    adapter = {"x-amzn-sagemaker-adapter-identifier": target}
    own = {"x-amzn-sagemaker-target-model": "acme/m"}
    return {
        "InvokeEndpoint": ("POST", "/endpoints/default/invocations", named, inputs),
        "response stream": ("POST", "/endpoints/default/invocations-response-stream", named, inputs),
        "/invocations": ("POST", "/invocations", named, inputs),
        "adapter by header": ("POST", "/endpoints/default/invocations", own | adapter, inputs),
        "adapter by body": ("POST", "/endpoints/default/invocations", own,
                            json.dumps({"inputs": "hello", "adapters": target})),
        "adapter of it": ("POST", "/endpoints/default/invocations",
                          named | {"x-amzn-sagemaker-adapter-identifier": "acme/m"}, inputs),
        "chat": ("POST", "/v1/chat/completions", {}, chat),
        "completions": ("POST", "/v1/completions", {}, json.dumps({"model": target, "prompt": "hi"})),
        "embeddings": ("POST", "/v1/embeddings", {}, json.dumps({"model": target, "input": "hi"})),
        "one of the list": ("GET", f"/v1/models/{target}", {}, None),
    }


class Asker:
    """One connection of one tenant; the answer's bytes are read raw, so that little is timed but the server."""

    def __init__(self, address, tenant):
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.host, self.tenant = address, tenant

    def prepared(self, method, path, headers, body):
        body = (body or "").encode()
        lines = [f"{method} {path} HTTP/1.1", f"host: {self.host}", f"{TENANT_HEADER}: {self.tenant}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if method == "POST":
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def ask(self, request):
        began = time.perf_counter_ns()
        self.socket.sendall(request)
        received = self.socket.recv(65536)
        while True:
            head, found, body = received.partition(b"\r\n\r\n")
            if found:
                length = re.search(rb"content-length: (\d+)", head.lower())
                if length and len(body) >= int(length[1]):
                    break
                if not length and body.endswith(b"0\r\n\r\n"):
                    break
            more = self.socket.recv(65536)
            if not more:
                raise SystemExit("the server hung up")
            received += more
        return time.perf_counter_ns() - began, head, body


def said(head, body, name):
    lines = head.decode().split("\r\n")
    kept = [line for line in lines[1:] if line.split(":")[0].lower() not in VARY]
    return lines[0], tuple(sorted(kept)), body.decode(errors="replace").replace(name, "NAME")


def kolmogorov_smirnov(one, other):
    """The largest distance of two distributions, and how often chance alone makes it as large."""
    one, other = sorted(one), sorted(other)
    i = j = 0
    distance = 0.0
    while i < len(one) and j < len(other):
        value = min(one[i], other[j])
        while i < len(one) and one[i] <= value:
            i += 1
        while j < len(other) and other[j] <= value:
            j += 1
        distance = max(distance, abs(i / len(one) - j / len(other)))
    root = math.sqrt(len(one) * len(other) / (len(one) + len(other)))
    scaled = (root + 0.12 + 0.11 / root) * distance
    chance = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * scaled * scaled) for k in range(1, 101))
    return distance, min(1.0, max(0.0, chance)) if scaled > 0.2 else 1.0


def mann_whitney(one, other):
    """How often a time of the one is the larger, and how often chance alone puts it as far from a half."""
    ranked = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    ranks = ties = 0.0
    at = 0
    while at < len(ranked):
        end = at
        while end < len(ranked) and ranked[end][0] == ranked[at][0]:
            end += 1
        rank, count = (at + end + 1) / 2, end - at
        ties += count**3 - count
        ranks += rank * sum(1 for place in range(at, end) if ranked[place][1] == 0)
        at = end
    n, m = len(one), len(other)
    larger = ranks - n * (n + 1) / 2
    spread = math.sqrt(n * m / 12 * ((n + m + 1) - ties / ((n + m) * (n + m - 1))))
    z = (larger - n * m / 2) / spread if spread else 0.0
    return larger / (n * m), math.erfc(abs(z) / math.sqrt(2))


def compare(asker, face, samples, pair):
    """Times of two names, asked for in pairs of random order."""
    requests = {name: asker.prepared(*faces(name)[face]) for name in pair}
    times = {name: [] for name in pair}
    answers = {name: set() for name in pair}
    for _ in range(200):
        for name in pair:
            asker.ask(requests[name])
    for _ in range(samples):
        order = list(pair)
        random.shuffle(order)
        for name in order:
            took, head, body = asker.ask(requests[name])
            times[name].append(took)
            answers[name].add(said(head, body, name))
    one, other = pair
    assert len(answers[one]) == 1 and answers[one] == answers[other], (face, answers)
    distance, by_distance = kolmogorov_smirnov(times[one], times[other])
    larger, by_rank = mann_whitney(times[one], times[other])
    return {
        "status": next(iter(answers[one]))[0].split()[1],
        "median_us": {name: statistics.median(taken) / 1e3 for name, taken in times.items()},
        "p99_us": {name: sorted(taken)[len(taken) * 99 // 100] / 1e3 for name, taken in times.items()},
        "ks_distance": distance, "ks_p": by_distance,
        "larger_share": larger, "mw_p": by_rank,
    }


# A classifier of two labels, small enough to be written by hand.
def write_model(folder):
    folder.mkdir(parents=True)
    hidden, vocabulary = 8, 8
    sizes = {
        "bert.embeddings.word_embeddings.weight": [vocabulary, hidden],
        "bert.embeddings.position_embeddings.weight": [16, hidden],
        "bert.embeddings.token_type_embeddings.weight": [2, hidden],
        "classifier.weight": [2, hidden], "classifier.bias": [2],
        "bert.pooler.dense.weight": [hidden, hidden], "bert.pooler.dense.bias": [hidden],
    }
    layer = "bert.encoder.layer.0."
    for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
        sizes[f"{layer}{name}.weight"] = [hidden, hidden]
        sizes[f"{layer}{name}.bias"] = [hidden]
    sizes |= {
        f"{layer}intermediate.dense.weight": [hidden, hidden], f"{layer}intermediate.dense.bias": [hidden],
        f"{layer}output.dense.weight": [hidden, hidden], f"{layer}output.dense.bias": [hidden],
    }
    for name in ("bert.embeddings.LayerNorm", f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"):
        sizes |= {f"{name}.weight": [hidden], f"{name}.bias": [hidden]}
    header, at = {}, 0
    for name, shape in sizes.items():
        length = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "vocab_size": vocabulary,
        "hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": hidden,
        "hidden_act": "gelu", "max_position_embeddings": 16, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "pad_token_id": 0, "id2label": {"0": "no", "1": "yes"},
    }))
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "hello": 4}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("store", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--samples", type=int, default=10_000)
    args = parser.parse_args()
    for target in ("acme/m", HIDDEN):
        if not (args.store / target).exists():
            write_model(args.store / target)
    random.seed(7)
    proxy = '[auth]\nproxy_networks = "127.0.0.1/32"\nproxy_header = "x-roundhouse-tenant"'
    results = {}
    with tempfile.TemporaryDirectory(prefix="hidden-") as scratch:
        settings = pathlib.Path(scratch) / "roundhouse.toml"
        settings.write_text(config(args.store.resolve(), f"{scratch}/cache", proxy))
        server = Server(args.binary, ["--config", settings, "--access-log", "off"])
        try:
            owner, asker = Asker(server.data, "evil"), Asker(server.data, "acme")
            for who, target in ((owner, HIDDEN), (asker, "acme/m")):
                _, head, body = who.ask(who.prepared(*faces(target)["InvokeEndpoint"]))
                assert b" 200 " in head.split(b"\r\n")[0], (head, body)
            for face in faces(HIDDEN):
                found = {
                    "hidden": compare(asker, face, args.samples, (HIDDEN, MISSING)),
                    "chance": compare(asker, face, args.samples, (OTHER, MISSING)),
                }
                results[face] = found
                print(face, json.dumps(found), flush=True)
        finally:
            server.stop()
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "hidden.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = [
        f"{args.samples} samples of each; p: how often chance alone differs as much.", "",
        "| face | status | median hidden / missing, us | KS p | Mann-Whitney p | larger | KS p, MW p of missing twice |",
        "|---|---|---|---|---|---|---|",
    ]
    for face, found in results.items():
        hidden, chance = found["hidden"], found["chance"]
        medians = hidden["median_us"]
        lines.append(
            f"| {face} | {hidden['status']} | {medians[HIDDEN]:.1f} / {medians[MISSING]:.1f} "
            f"| {hidden['ks_p']:.3f} | {hidden['mw_p']:.3f} | {hidden['larger_share']:.4f} "
            f"| {chance['ks_p']:.3f}, {chance['mw_p']:.3f} |"
        )
    (args.output / "hidden.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
