"""Switches between two models that do not fit a simulated device together, beside a plain copy
and a plain read of the same bytes.

    python loadtest/switch/run.py BINARY MODELS OUT [ROUNDS]

MODELS is what make_models.py made. Requests alternate between the two, so that each makes one
leave and the other come:

- host: both have copies in the host's memory; a switch copies one to the device. With copies as
  fast as the machine can, and bounded to 2 GB/s.
- disk: no host tier; a switch reads the model's file, which is in the page cache.

Beside each switch, in turns with it: `copy`, the same number of bytes from one buffer to
another, into memory that was never touched (as a load's is) and into memory that was; `read`,
the weights' file from the page cache, into the same two. All on one thread, as a load is.
Writes rows.jsonl (every single figure) and table.md (medians) into OUT.
"""

import json
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import started

BINARY, MODELS, OUT = sys.argv[1:4]
ROUNDS = int(sys.argv[4]) if len(sys.argv) > 4 else 15
TARGETS = ["north", "south"]
STAGES = ["read", "copy", "warm"]
# One of them with its KV pool and workspace, not two.
DEVICE, HOST = "700MiB", "1100MiB"


class Server(started.Server):
    def __init__(self, rate, host):
        self.folder = tempfile.mkdtemp(prefix="switch-")
        lines = ["version = 1", "[memory]", f'host = "{host}"']
        lines += ["[[device]]", 'id = "simulated:0"', f'budget = "{DEVICE}"']
        lines += [f'copy_bandwidth = "{rate}"'] if rate else []
        file = os.path.join(self.folder, "roundhouse.toml")
        with open(file, "w") as out:
            out.write("\n".join(lines) + "\n")
        super().__init__(BINARY, [
            "--config", file, "--store", f"file://{os.path.abspath(MODELS)}/",
            "--cache-dir", os.path.join(self.folder, "cache"), "--context", "256", "--kv-sequences", "1",
            "--step-tokens", "256", "--log-level", "warn", "--access-log", "off",
        ], log=sys.stderr)

    def ask(self, target):
        """Milliseconds of one request, those of its load, and the tier that it found."""
        body = {"inputs": "a", "parameters": {"max_new_tokens": 1}}
        headers = {
            "content-type": "application/json", "x-amzn-sagemaker-target-model": target,
        }
        url = f"{self.data_url}/endpoints/default/invocations"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        began = time.monotonic()
        with urllib.request.urlopen(request, timeout=600) as answer:
            answer.read()
            took = 1000 * (time.monotonic() - began)
            load = float(answer.headers["x-roundhouse-load-ms"])
            return took, load, answer.headers["x-roundhouse-tier"]

    def stages(self):
        """Milliseconds that every stage has taken so far."""
        text = urllib.request.urlopen(f"{self.admin_url}/metrics").read().decode()
        sums = {}
        for stage in STAGES:
            start = f'roundhouse_load_stage_seconds_sum{{stage="{stage}"}} '
            found = [line for line in text.splitlines() if line.startswith(start)]
            sums[stage] = 1000 * float(found[0].split()[-1]) if found else 0.0
        return sums

    def stop(self):
        super().stop()
        shutil.rmtree(self.folder)


def milliseconds(work):
    began = time.monotonic()
    kept = work()
    took = 1000 * (time.monotonic() - began)
    del kept
    return took


class Plain:
    """A copy and a read of as many bytes as a model's weights have."""

    def __init__(self):
        self.path = os.path.join(MODELS, TARGETS[0], "model.safetensors")
        self.size = os.path.getsize(self.path)
        with open(self.path, "rb") as file:
            self.source = file.read()
        self.touched = bytearray(self.source)

    def row(self):
        return {
            "copy": milliseconds(lambda: bytearray(self.source)),
            "copy_touched": milliseconds(self.copy),
            "read": milliseconds(lambda: self.read(None)),
            "read_touched": milliseconds(lambda: self.read(self.touched)),
        }

    def copy(self):
        memoryview(self.touched)[:] = self.source

    def read(self, into):
        with open(self.path, "rb", buffering=0) as file:
            if into is None:
                return file.read()
            view, done = memoryview(into), 0
            while done < len(view):
                done += file.readinto(view[done:])
            return None


def run(name, rate, host, tier, plain, rows):
    server = Server(rate, host)
    try:
        seen = []
        # Cold loads, the first demotions, and until both are found where they are to be.
        for turn in range(20):
            seen.append(server.ask(TARGETS[turn % 2])[2])
            if turn >= 4 and seen[-2:] == [tier, tier]:
                break
        else:
            raise SystemExit(f"{name}: never twice in a row from {tier}: {seen}")
        for turn in range(2 * ROUNDS):
            before = server.stages()
            took, load, found = server.ask(TARGETS[(len(seen) + turn) % 2])
            after = server.stages()
            if found != tier:
                raise SystemExit(f"{name}: found in {found}, not in {tier}")
            row = {"run": name, "request": took, "load": load}
            row |= {stage: after[stage] - before[stage] for stage in STAGES}
            rows.append(row | {f"plain_{key}": value for key, value in plain.row().items()})
    finally:
        server.stop()


def main():
    os.makedirs(OUT, exist_ok=True)
    plain, rows = Plain(), []
    runs = [
        ("host, unbounded", None, HOST, "host"),
        ("host, 2 GB/s", "2GB/s", HOST, "host"),
        ("disk, unbounded", None, "0B", "disk"),
    ]
    for name, rate, host, tier in runs:
        run(name, rate, host, tier, plain, rows)
    with open(os.path.join(OUT, "rows.jsonl"), "w") as out:
        for row in rows:
            out.write(json.dumps({key: round(it, 2) if key != "run" else it for key, it in row.items()}) + "\n")
    columns = [key for key in rows[0] if key != "run"]
    with open(os.path.join(OUT, "table.md"), "w") as out:
        print(f"Medians of {2 * ROUNDS} switches, milliseconds; {plain.size} bytes of weights.\n", file=out)
        print("| run | " + " | ".join(column.replace("_", " ") for column in columns) + " |", file=out)
        print("|---" * (len(columns) + 1) + "|", file=out)
        for name, *_ in runs:
            of = [row for row in rows if row["run"] == name]
            medians = [f"{statistics.median(row[column] for row in of):.1f}" for column in columns]
            print(f"| {name} | " + " | ".join(medians) + " |", file=out)
    print(open(os.path.join(OUT, "table.md")).read())


main()
