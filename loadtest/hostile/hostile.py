"""How much hostile handlers cost their neighbours.

Starts Roundhouse with the handlers of tests/models/handlers/hostile, a well-behaved neighbour
(an echo) and the demo's language model beside them. The neighbour is asked at planned times,
`--rate` times a second, and the model once a second. Windows alternate: quiet, hostile, quiet,
hostile …; in a hostile window one thread does the hostile thing over and over. For each the
neighbour's p50 and p99 are told for both kinds of window, and their ratio. After each the
hostile model is unloaded, and a witness looks at what is left: processes of the server's, and
the sum of their PSS. Every answer of the neighbour is compared with what was sent.

usage: hostile.py --binary target/release/roundhouse --out DIR [--only crash,leak] [--rounds 3]
"""

import argparse
import http.client
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import started

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HANDLERS = os.path.join(ROOT, "tests", "models", "handlers")
MODEL = os.path.join(ROOT, "src", "server", "demo", "models", "support", "base")
# What is sent to each, over and over.
HOSTILE = {
    "none": b"",
    "crash": b"crash",
    "hang": b"hang",
    "leak": b"leak",
    "flood": b"flood",
    "fork": b"fork",
    "ignore_sigterm": b"hang",
    "slow_import": b"any",
    "huge": b"huge",
    "snoop": b"{}",
}
SETTINGS = """
version = 1
[listen]
data = "127.0.0.1:0"
admin = "127.0.0.1:0"
[memory]
budget = "2GiB"
[cache]
dir = "{work}/cache"
[handlers]
enabled = true
time_limit = "2s"
start_limit = "60s"
max_memory = "512MiB"
[serving]
context = 512
step_tokens = 512
[log]
access = "off"
[[endpoint]]
name = "default"
[[endpoint.mount]]
uri = "file://{work}/models/"
"""


class Server(started.Server):
    """The process under test."""

    def __init__(self, binary, work):
        config = os.path.join(work, "config.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(SETTINGS.format(work=work))
        self.log = open(os.path.join(work, "log.txt"), "wb")
        super().__init__(binary, ["--config", config], log=self.log)

    def ask(self, target, body, kind="application/json"):
        """One call; the status and the body."""
        connection = http.client.HTTPConnection(self.data, timeout=70)
        try:
            return invoke(connection, target, body, kind)
        finally:
            connection.close()

    def unload(self, target):
        connection = http.client.HTTPConnection(self.admin, timeout=70)
        body = json.dumps({"endpoint": "default", "target": target})
        connection.request("POST", "/admin/v1/unload", body, {"Content-Type": "application/json"})
        connection.getresponse().read()
        connection.close()

    def children(self):
        """Processes below the server, whatever they have become, with their PSS in kB."""
        parents, found = {}, {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    fields = file.read().rsplit(")", 1)[1].split()
                parents[int(name)] = (int(fields[1]), int(fields[2]))
            except OSError:
                continue
        groups = {pid for pid, (parent, _) in parents.items() if parent == self.process.pid}
        for pid, (_, group) in parents.items():
            if group in groups:
                try:
                    with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
                        pss = [line.split()[1] for line in file if line.startswith("Pss:")]
                    found[pid] = int(pss[0]) if pss else 0
                except OSError:
                    continue
        return found


def invoke(connection, target, body, kind="application/json"):
    headers = {"X-Amzn-SageMaker-Target-Model": target, "Content-Type": kind}
    connection.request("POST", "/endpoints/default/invocations", body, headers)
    response = connection.getresponse()
    return response.status, response.read()


def neighbour(server, rate, seconds):
    """Asks at planned times; latencies in ms from the planned time."""
    connection = http.client.HTTPConnection(server.data, timeout=30)
    body = json.dumps({"data": "x" * 500}).encode()
    start, taken = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        planned = start + number / rate
        while (wait := planned - time.perf_counter()) > 0:
            time.sleep(wait)
        status, answer = invoke(connection, "echo", body)
        assert status == 200 and answer == body, (status, answer[:200])
        taken.append((time.perf_counter() - planned) * 1e3)
    connection.close()
    return taken


def asks_model(server, stop):
    body = json.dumps({"inputs": "We are open", "parameters": {"max_new_tokens": 8}})
    while not stop.wait(1.0):
        status, answer = server.ask("base", body)
        assert status == 200, answer


def does(server, what, body, stop, seen):
    while not stop.is_set():
        # The third of the same would be refused without being run.
        kind = f"application/octet-stream; n={time.time_ns()}"
        status, answer = server.ask(what, body, kind)
        key = "200"
        if status != 200:
            told = json.loads(answer)
            key = f"{status} {told.get('OriginalMessage') or told.get('Message')}"
            key = re.sub(r"[0-9.]+ MiB of", "… MiB of", key)
        seen[key] = seen.get(key, 0) + 1
        time.sleep(0.05)


def window(server, what, rate, seconds, seen):
    stop = threading.Event()
    threads = [threading.Thread(target=asks_model, args=(server, stop), daemon=True)]
    if what != "none":
        arguments = (server, what, HOSTILE[what], stop, seen)
        threads.append(threading.Thread(target=does, args=arguments, daemon=True))
    for thread in threads:
        thread.start()
    taken = neighbour(server, rate, seconds)
    stop.set()
    return taken


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def measure(server, what, options):
    """Alternating windows of both kinds, and what is left after an unload."""
    server.ask("echo", b"{}")
    quiet, hostile, seen = [], [], {}
    before = server.children()
    for _ in range(options.rounds):
        quiet.append(window(server, "none", options.rate, options.seconds, seen))
        hostile.append(window(server, what, options.rate, options.seconds, seen))
    server.unload(what)
    time.sleep(3)
    after = server.children()
    row = {"what": what, "answers": seen,
           "processes": [len(before), len(after)], "pss_kb": [sum(before.values()), sum(after.values())]}
    for q in (0.5, 0.99):
        ones, others = ([quantile(w, q) for w in windows] for windows in (quiet, hostile))
        row[f"p{int(q * 100)}_ms"] = [statistics.median(ones), statistics.median(others)]
        row[f"p{int(q * 100)}_ratio"] = statistics.median(o / n for n, o in zip(ones, others))
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/roundhouse")
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", default=",".join(HOSTILE))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rate", type=float, default=100)
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    work = tempfile.mkdtemp(prefix="hostile-")
    os.chmod(work, 0o755)
    models = os.path.join(work, "models")
    shutil.copytree(os.path.join(HANDLERS, "hostile"), models)
    shutil.copytree(os.path.join(HANDLERS, "echo"), os.path.join(models, "echo"))
    shutil.copytree(MODEL, os.path.join(models, "base"))
    server = Server(options.binary, work)
    rows = []
    try:
        server.ask("base", json.dumps({"inputs": "We", "parameters": {"max_new_tokens": 2}}))
        for what in options.only.split(","):
            rows.append(measure(server, what, options))
            print(json.dumps(rows[-1]), flush=True)
    finally:
        server.stop()
        size = os.path.getsize(os.path.join(work, "log.txt"))
        shutil.rmtree(work, ignore_errors=True)
    with open(os.path.join(options.out, "hostile.json"), "w", encoding="utf-8") as file:
        json.dump({"command": " ".join(sys.argv), "log_bytes": size, "rows": rows}, file, indent=1)
    lines = ["| hostile | p50 ms quiet, hostile | p99 ms quiet, hostile | p99 ratio | processes before, after | PSS MB before, after |",
             "|---|---|---|---|---|---|"]
    for row in rows:
        p50, p99, pss = row["p50_ms"], row["p99_ms"], [kb / 1024 for kb in row["pss_kb"]]
        lines.append(f"| {row['what']} | {p50[0]:.2f}, {p50[1]:.2f} | {p99[0]:.2f}, {p99[1]:.2f} | {row['p99_ratio']:.2f}"
                     f" | {row['processes'][0]}, {row['processes'][1]} | {pss[0]:.1f}, {pss[1]:.1f} |")
    with open(os.path.join(options.out, "hostile.md"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
