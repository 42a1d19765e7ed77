"""First answers of adapters that are only in the store, their base being resident and busy.

    python loadtest/adapters/first.py BINARY STORE OUTPUT [--late 0.03] [--pace 100000000] [--adapters 24]

STORE is what make.py made. The store answers each request `late` seconds late and sends `pace` bytes
a second. Four streams of the base run all the time; beside them adapters are asked for one by one,
each for the first time and then again with other prompts. All are one tenant's, so that fairness
between tenants does not spread their prompts over steps. Writes OUTPUT/first.json and OUTPUT/first.md: how long the
first answer took beyond the second one and beyond its bytes over the bandwidth, in round trips, with
the requests that the store saw; and the time between tokens of the streams while nothing loads and
while something does. Standard library only; everything listens on loopback and is stopped at the end.
"""

import argparse
import http.client
import json
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import started

SHAPES = ["qv4", "qv16", "all16"]
STREAMS = 4
PROMPT = "The shop opens at nine and "
SETTINGS = """
version = 1
[cache]
dir = "{cache}/store"
[[endpoint]]
name = "default"
[endpoint.bases]
base = "fleet/base"
[[endpoint.mount]]
uri = "s3://models/"
"""


class Server(started.Server):
    def __init__(self, binary, store):
        self.asked = 0
        self.cache = tempfile.TemporaryDirectory(prefix="adapters-first-")
        settings = pathlib.Path(self.cache.name) / "roundhouse.toml"
        settings.write_text(SETTINGS.format(cache=self.cache.name))
        words = ["--memory", "4GiB", "--context", "2048", "--kv-sequences", "8", "--access-log", "off"]
        super().__init__(binary, ["--config", settings, *words], store.env)

    def ask(self, target, tokens):
        """Seconds until the whole answer to a prompt that nobody has asked before."""
        self.asked += 1
        body = {"inputs": f"{self.asked:04d} {PROMPT}", "parameters": {
            "max_new_tokens": tokens, "do_sample": False, "ignore_eos_token": True}}
        connection = http.client.HTTPConnection(self.data, timeout=300)
        began = time.monotonic()
        connection.request("POST", "/endpoints/default/invocations", json.dumps(body),
                           {"content-type": "application/json", "x-amzn-sagemaker-target-model": target})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        return time.monotonic() - began

    def stream(self, until, times):
        """Streams of the base, one after the other; times at which tokens came."""
        while not until.is_set():
            body = {"model": "fleet/base", "prompt": PROMPT, "max_tokens": 400, "temperature": 0,
                    "ignore_eos": True, "stream": True, "logprobs": 0}
            connection = http.client.HTTPConnection(self.data, timeout=300)
            connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
            here = []
            for line in connection.getresponse():
                if line.startswith(b"data: {"):
                    here.append(time.monotonic())
                if until.is_set():
                    break
            times.append(here)
            connection.close()

    def store_requests(self):
        connection = http.client.HTTPConnection(self.admin, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines()
                   if line.startswith("roundhouse_store_requests_total"))

    def stop(self):
        super().stop()
        self.cache.cleanup()


def between(times, spans):
    """Seconds from token to token of the streams by what went on meanwhile: the name of a span, or nothing."""
    found = {name: [] for name, _, _ in spans} | {None: []}
    for stream in times:
        for last, this in zip(stream, stream[1:]):
            names = [name for name, begin, end in spans if last < end and begin < this]
            found[names[0] if names else None].append(this - last)
    return {name: sorted(of) for name, of in found.items()}


def measure(server, store_folder, options):
    rows, spans = [], []

    def ask(target, name):
        began = time.monotonic()
        took = server.ask(target, 1)
        spans.append((name, began, time.monotonic()))
        return took

    for number in range(options.adapters):
        shape = SHAPES[number % len(SHAPES)]
        target = f"fleet/{shape}/{number // len(SHAPES)}"
        before = server.store_requests()
        first = ask(target, "first")
        requests = server.store_requests() - before
        time.sleep(0.3)
        again = statistics.median(ask(target, "again") for _ in range(3))
        size = (store_folder / target / "adapter_model.safetensors").stat().st_size
        beyond = first - again - size / options.pace
        rows.append({"target": target, "bytes": size, "first": first, "again": again, "beyond": beyond,
                     "round_trips": beyond / options.late, "requests": requests})
        print(json.dumps(rows[-1]), flush=True)
        time.sleep(0.5)
    return rows, spans


def place(store, folder, options):
    """The base and as many adapters as are asked for, by links."""
    names = ["base"] + [f"{shape}/{number}" for shape in SHAPES
                        for number in range(-(-options.adapters // len(SHAPES)))]
    for name in names:
        (folder / "fleet" / name).mkdir(parents=True)
        for file in (store / name).iterdir():
            os.link(file, folder / "fleet" / name / file.name)


def table(rows, pauses, options):
    lines = [f"a store that is {options.late * 1e3:g} ms late and sends {options.pace / 1e6:g} MB/s; "
             f"{STREAMS} streams of the base beside; {os.cpu_count()} cores; medians", "",
             "| shape | bytes | first ms | again ms | bytes by bandwidth ms | beyond both ms | in round trips | requests |",
             "|---|---|---|---|---|---|---|---|"]
    for shape in SHAPES:
        of = [row for row in rows if f"/{shape}/" in row["target"]]
        if not of:
            continue
        middle = {key: statistics.median(row[key] for row in of) for key in of[0] if key != "target"}
        lines.append(f"| {shape} | {middle['bytes']:.0f} | {middle['first'] * 1e3:.0f} | {middle['again'] * 1e3:.0f} | "
                     f"{middle['bytes'] / options.pace * 1e3:.0f} | {middle['beyond'] * 1e3:.0f} | "
                     f"{middle['round_trips']:.2f} | {middle['requests']:.0f} |")
    lines += ["", "| between tokens of the streams | tokens | p50 ms | p90 ms | p99 ms |", "|---|---|---|---|---|"]
    for name, key in [("alone", None), ("beside a request of a loaded adapter", "again"),
                      ("beside the first request of an adapter", "first")]:
        times = pauses[key]
        at = [times[min(len(times) - 1, int(len(times) * part))] * 1e3 for part in (0.5, 0.9, 0.99)]
        lines.append(f"| {name} | {len(times)} | " + " | ".join(f"{it:.1f}" for it in at) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("store", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--late", type=float, default=0.03)
    parser.add_argument("--pace", type=int, default=100_000_000)
    parser.add_argument("--adapters", type=int, default=24)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    # Links need the store's file system.
    with tempfile.TemporaryDirectory(dir=options.store.resolve().parent) as folder:
        folder = pathlib.Path(folder)
        place(options.store, folder, options)
        store = started.Store(folder)
        store.pace(options.pace, options.late)
        server = Server(options.binary, store)
        until, times = threading.Event(), []
        streams = [threading.Thread(target=server.stream, args=(until, times)) for _ in range(STREAMS)]
        try:
            server.ask("fleet/base", 1)
            for stream in streams:
                stream.start()
            time.sleep(5)
            rows, spans = measure(server, folder, options)
            until.set()
            for stream in streams:
                stream.join()
        finally:
            until.set()
            server.stop()
            store.stop()
    (options.output / "first.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.output / "first.md").write_text(table(rows, between(times, spans), options))
    print((options.output / "first.md").read_text())


if __name__ == "__main__":
    main()
