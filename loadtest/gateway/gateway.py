"""What a request costs that passes through all of Roundhouse, beside a bare echo and beside HAProxy.

    python3 loadtest/gateway/gateway.py --out loadtest/results/DATE-MACHINE/gateway

In each round wrk asks all of them, in an order that rotates by round, on each number of connections:

- `echo`: a bare axum server that sends each body back (`roundhouse-loadtest echo`)
- `haproxy`: HAProxy in front of that
- `container`: Roundhouse in front of it, an endpoint with one container
- `lookup`: Roundhouse by itself: one model's entry (`GET /v1/models/…`), which nothing behind it is asked for
- `handler`: a target that does nothing: a Python handler that returns its body (`peers/echo/roundhouse`), by one
  worker. The request is admitted, leases the target from residency, and is handed to its process and back
- `model`: Roundhouse by itself: the smallest classifier, computed
- `before`: what `container` is, by the earlier build that `--against` names

All of Roundhouse's pass through the whole chain: identity, policy, quotas, metering and the access
log, as they are by default; `handler` and `model` through admission and residency, too. Ratios and differences
are taken within a round. CPU is what the process itself took, kernel included, by request; what its handlers'
processes took is a column of its own. Builds nothing: needs wrk, haproxy and
`cargo build --release -p roundhouse -p roundhouse-loadtest`. Writes results.json (every sample) and
README.md (tables) into --out.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))
import started

LOADTEST = Path(__file__).resolve().parent.parent


def module(path: Path):
    """A script of another folder, for what it can do already."""
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


proxying = module(LOADTEST / "containers" / "bench.py")
models = module(LOADTEST / "chaos" / "models.py")

ROUNDHOUSE = """
version = 1
[listen]
data = "127.0.0.1:{port}"
admin = "127.0.0.1:0"
[cache]
dir = "{work}/cache-{name}"
[[endpoint]]
name = "echo"
[[endpoint.container]]
hostname = "echo"
url = "http://127.0.0.1:{echo}"
[[endpoint]]
name = "models"
[[endpoint.mount]]
uri = "file://{work}/store/"
[[endpoint]]
name = "handlers"
handlers = true
[[endpoint.mount]]
uri = "file://{work}/handlers/"
[handlers]
# What confines a handler costs at its start, not in its calls.
isolation = "best-effort"
"""
PEERS = ("echo", "haproxy", "container", "lookup", "handler", "model")
# Which process answers for whom.
OF = {name: "roundhouse" for name in ("container", "lookup", "handler", "model")}
# Who sends the body back.
ECHOES = {"echo", "haproxy", "container", "before", "handler"}
TICKS = os.sysconf("SC_CLK_TCK")


class Asked:
    """What one peer is asked, and whose processor time that is."""

    def __init__(self, url: str, body: str = "", headers: dict | None = None) -> None:
        self.url, self.body, self.headers = url, body, headers or {}
        self.pid = 0

    def script(self) -> str:
        lines = [f"wrk.method = '{'POST' if self.body else 'GET'}'"]
        if self.body:
            lines += [f"wrk.body = {json.dumps(self.body)}",
                      "wrk.headers['Content-Type'] = 'application/json'"]
        lines += [f"wrk.headers['{name}'] = '{value}'" for name, value in self.headers.items()]
        return "\n".join([*lines, proxying.SUMMARY])

    def answers(self) -> bytes:
        data = self.body.encode() or None
        headers = {"Content-Type": "application/json", **self.headers} if data else self.headers
        request = urllib.request.Request(self.url, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has taken, in it and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def children(pid: int) -> list:
    """A process's own processes, and theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # it has just ended
    found = [pid]
    for of in found:
        found += [child for child, parent in parents.items() if parent == of]
    return found[1:]


def of_children(pid: int) -> dict:
    """What `cpu` says of each of a process's own processes."""
    seconds = {}
    for child in children(pid):
        try:
            seconds[child] = cpu(child)
        except OSError:
            continue  # it has just ended
    return seconds


def measured(asked: Asked, script: Path, options: argparse.Namespace, connections: int) -> dict:
    # Those that are there all the time: what ends meanwhile was idle.
    own, others = cpu(asked.pid), of_children(asked.pid)
    sample = proxying.measure(asked.url, script, options, connections)
    requests = max(sample["requests"], 1)
    sample["cpu_us"] = (cpu(asked.pid) - own) / requests * 1e6
    after = of_children(asked.pid)
    taken = sum(after[pid] - others[pid] for pid in after if pid in others)
    sample["workers_cpu_us"] = taken / requests * 1e6
    return sample


def rounds(peers: dict, work: Path, options: argparse.Namespace) -> list:
    scripts = {}
    for name, asked in peers.items():
        scripts[name] = work / f"{name}.lua"
        scripts[name].write_text(asked.script())
        measured(asked, scripts[name], options, max(options.connections))
    records, names = [], list(peers)
    for number in range(options.rounds):
        order = [names[(at + number) % len(names)] for at in range(len(names))]
        for connections in options.connections:
            for name in order:
                record = {"round": number + 1, "peer": name, "connections": connections}
                record.update(measured(peers[name], scripts[name], options, connections))
                records.append(record)
                print("round {round}: {peer} on {connections}: {requests_per_second:.0f}/s, p50 "
                      "{p50_us:.0f} us, p99 {p99_us:.0f} us, CPU {cpu_us:.1f} us".format(**record),
                      flush=True)
    return records


def table(records: list, connections: int, names: list) -> list:
    def by_round(peer: str, key: str) -> list:
        return [record[key] for record in records
                if (record["peer"], record["connections"]) == (peer, connections)]

    def paired(peer: str, key: str, of) -> str:
        pairs = zip(by_round(peer, key), by_round("echo", key))
        return proxying.spread([of(own, bare) for own, bare in pairs], 2 if key[0] == "r" else 0)

    lines = [f"## {connections} connection{'s' if connections > 1 else ''}", "",
             "| | requests/s | of the echo's | p50 us | p99 us | added p50 us | added p99 us | "
             "CPU us a request | of its workers | errors |",
             "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for name in names:
        middle = {key: median(by_round(name, key))
                  for key in ("requests_per_second", "p50_us", "p99_us", "cpu_us", "workers_cpu_us")}
        cells = [f"{middle['requests_per_second']:.0f}", "-", f"{middle['p50_us']:.0f}",
                 f"{middle['p99_us']:.0f}", "-", "-", f"{middle['cpu_us']:.1f}",
                 f"{middle['workers_cpu_us']:.1f}" if name == "handler" else "-",
                 str(sum(by_round(name, "errors")))]
        if name != "echo":
            cells[1] = paired(name, "requests_per_second", lambda own, bare: own / bare)
            cells[4] = paired(name, "p50_us", lambda own, bare: own - bare)
            cells[5] = paired(name, "p99_us", lambda own, bare: own - bare)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def peers(ports: dict, body: str) -> dict:
    at = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    return {
        "echo": Asked(f"{at['echo']}/invocations", body),
        "haproxy": Asked(f"{at['haproxy']}/invocations", body),
        "container": Asked(f"{at['roundhouse']}/endpoints/echo/invocations", body),
        "before": Asked(f"{at['before']}/endpoints/echo/invocations", body),
        "lookup": Asked(f"{at['roundhouse']}/v1/models/echo:echo"),
        "handler": Asked(f"{at['roundhouse']}/endpoints/handlers/invocations", body,
                         {"X-Amzn-SageMaker-Target-Model": "echo"}),
        "model": Asked(f"{at['roundhouse']}/endpoints/models/invocations",
                       json.dumps({"inputs": "hello world"}),
                       {"X-Amzn-SageMaker-Target-Model": "tiny"}),
    }


def commands(options: argparse.Namespace, ports: dict, work: Path) -> dict:
    store = work / "store" / "tiny"
    store.mkdir(parents=True)
    for path, content in models.classifier("tiny", 1, 0, "tiny").items():
        (store / path).write_bytes(content)
    shutil.copytree(LOADTEST / "peers" / "echo" / "roundhouse", work / "handlers" / "echo")
    threads, front, echo = os.cpu_count(), ports["haproxy"], ports["echo"]
    (work / "haproxy.cfg").write_text(
        proxying.HAPROXY.format(threads=threads, port=front, echo=echo))
    ours = {}
    for name, binary in (("roundhouse", options.roundhouse), ("before", options.against)):
        config = work / f"{name}.toml"
        config.write_text(ROUNDHOUSE.format(port=ports[name], echo=echo, work=work, name=name))
        ours[name] = [binary, "serve", "--config", str(config)]
    return {
        "echo": [options.loadtest, "echo", "--listen", f"127.0.0.1:{echo}"],
        "haproxy": ["haproxy", "-db", "-f", str(work / "haproxy.cfg")],
        **ours,
    }


def answering(command: list, asked: Asked, log: Path) -> subprocess.Popen:
    with log.open("ab") as file:
        process = started.start(command, stdout=subprocess.DEVNULL, stderr=file)
    deadline = time.monotonic() + 60
    while True:
        try:
            asked.answers()
            return process
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{shlex.join(map(str, command))} does not answer at {asked.url}: "
                         + log.read_text()[-500:])
            time.sleep(0.05)


def run(options: argparse.Namespace) -> list:
    body = json.dumps({"inputs": "x" * options.bytes})
    ports = {name: proxying.free_port() for name in ("echo", "haproxy", "roundhouse", "before")}
    asked = {name: it for name, it in peers(ports, body).items() if name in options.peers}
    with tempfile.TemporaryDirectory() as folder:
        work, running = Path(folder), []
        try:
            for name, command in commands(options, ports, work).items():
                mine = [it for it in asked if OF.get(it, it) == name]
                if not mine:
                    continue
                # The access log goes to a file, as a service's does.
                running.append(answering(command, asked[mine[0]], work / f"{name}.log"))
                for it in mine:
                    asked[it].pid = running[-1].pid
                    answer = asked[it].answers()
                    if it in ECHOES and answer.decode() != body:
                        sys.exit(f"{it} does not send back what it is sent: {answer[:200]}")
            return rounds(asked, work, options)
        finally:
            for process in reversed(running):
                started.stop(process)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--bytes", type=int, default=256)
    parser.add_argument("--roundhouse", default="target/release/roundhouse")
    parser.add_argument("--against", help="an earlier build of Roundhouse")
    parser.add_argument("--loadtest", default="target/release/roundhouse-loadtest")
    options = parser.parse_args()
    # All others are held against it.
    options.peers = [name for name in PEERS if name in {*options.peers, "echo"}]
    options.peers += ["before"] if options.against else []
    records = run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True,
                            text=True, check=False).stdout.strip()
    about = {
        "command": shlex.join(["python3", *sys.argv]), "commit": commit,
        "at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} processors, {platform.platform()}",
    }
    (options.out / "results.json").write_text(json.dumps({**about, "records": records}, indent=1))
    lines = ["# A request through all of Roundhouse, beside a bare echo and HAProxy", "",
             *(f"- {name}: {value}" for name, value in about.items()), "",
             f"Medians of {options.rounds} rounds of {options.seconds} s, least and most in brackets. "
             "What is added, and what share of the echo's requests, is taken within a round. CPU is "
             "that of the process itself: behind `haproxy` and `container` the echo takes its own. "
             "The peers are explained in `loadtest/gateway/gateway.py`.", ""]
    for connections in options.connections:
        lines += table(records, connections, options.peers)
    (options.out / "README.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
