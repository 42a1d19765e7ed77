"""Compares Roundhouse with HAProxy as a proxy before the same echo server, in one session.

    python3 loadtest/containers/bench.py --out loadtest/results/DATE-MACHINE/containers

In each round wrk asks the echo server itself, through HAProxy and through Roundhouse (an endpoint with
one container; `--against` adds an earlier build of it), in an order that rotates by round, on each
number of connections. What counts is what a proxy adds to the echo server's own latency within a round,
and requests per second. Needs wrk and haproxy, and `cargo build --release -p roundhouse -p roundhouse-loadtest`. Writes results.json (every
sample) and README.md (tables) into --out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))
import started

SUMMARY = """
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'SUMMARY {"requests": %d, "duration_us": %d, "p50_us": %.1f, "p99_us": %.1f, "errors": %d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status + errors.connect + errors.read + errors.write + errors.timeout))
end
"""
HAPROXY = """
global
    nbthread {threads}
    maxconn 4096
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    option http-keep-alive
    http-reuse always
frontend front
    bind 127.0.0.1:{port}
    default_backend echo
backend echo
    option httpchk GET /ping
    server one 127.0.0.1:{echo} check inter 5s
"""
ROUNDHOUSE = """
version = 1
[listen]
data = "127.0.0.1:{port}"
admin = "127.0.0.1:0"
[log]
access = "off"
[[endpoint]]
name = "echo"
[[endpoint.container]]
hostname = "echo"
url = "http://127.0.0.1:{echo}"
"""
PEERS = ["echo", "haproxy", "roundhouse"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(url: str, body: bytes) -> bool:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read() == body
    except OSError:
        return False


def answering(command: list, url: str, body: bytes) -> subprocess.Popen:
    process = started.start(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not answers(url, body):
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{shlex.join(map(str, command))} does not answer at {url}")
        time.sleep(0.05)
    return process


def measure(url: str, script: Path, options: argparse.Namespace, connections: int) -> dict:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{options.seconds}s", "--latency", "-s",
               str(script), url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("SUMMARY "))
    sample = json.loads(line[len("SUMMARY "):])
    sample["requests_per_second"] = sample["requests"] / sample.pop("duration_us") * 1e6
    return sample


def rounds(urls: dict, script: Path, options: argparse.Namespace) -> list:
    for url in urls.values():
        measure(url, script, options, max(options.connections))
    records = []
    for number in range(options.rounds):
        order = [PEERS[(at + number) % len(PEERS)] for at in range(len(PEERS))]
        for connections in options.connections:
            for peer in order:
                record = {"round": number + 1, "peer": peer, "connections": connections}
                record.update(measure(urls[peer], script, options, connections))
                records.append(record)
                print("round {round}: {peer} on {connections}: {requests_per_second:.0f}/s, p50 "
                      "{p50_us:.0f} us, p99 {p99_us:.0f} us".format(**record), flush=True)
    return records


def spread(values: list, digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(records: list, connections: int) -> list:
    def by_round(peer: str, key: str) -> list:
        return [record[key] for record in records
                if (record["peer"], record["connections"]) == (peer, connections)]

    lines = [f"## {connections} connection{'s' if connections > 1 else ''}", "",
             "| | requests/s | p50 us | p99 us | added p50 us | added p99 us | errors |",
             "|---|--:|--:|--:|--:|--:|--:|"]
    added = {}
    for peer in PEERS:
        for key in ("p50_us", "p99_us"):
            pairs = zip(by_round(peer, key), by_round("echo", key))
            added[peer, key] = [own - bare for own, bare in pairs]
        cells = [f"{median(by_round(peer, 'requests_per_second')):.0f}"]
        cells += [f"{median(by_round(peer, key)):.0f}" for key in ("p50_us", "p99_us")]
        bare = peer == "echo"
        cells += ["-" if bare else spread(added[peer, key], 0) for key in ("p50_us", "p99_us")]
        lines.append(f"| {peer} | {' | '.join(cells)} | {sum(by_round(peer, 'errors'))} |")
    lines.append("")
    for key, name in (("p50_us", "p50"), ("p99_us", "p99")):
        pairs = zip(added["roundhouse", key], added["haproxy", key])
        ratio = [own / other for own, other in pairs if other > 0]
        if ratio:
            lines.append(f"Added {name}, Roundhouse over HAProxy: {spread(ratio, 2)}.")
    pairs = zip(by_round("roundhouse", "requests_per_second"),
                by_round("haproxy", "requests_per_second"))
    lines.append(f"Requests/s: {spread([own / other for own, other in pairs], 2)}.")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--bytes", type=int, default=256)
    parser.add_argument("--roundhouse", default="target/release/roundhouse")
    parser.add_argument("--against", help="an earlier build of Roundhouse, as one more peer")
    parser.add_argument("--loadtest", default="target/release/roundhouse-loadtest")
    options = parser.parse_args()
    body = json.dumps({"inputs": "x" * options.bytes})
    echo, front, own = free_port(), free_port(), free_port()
    urls = {
        "echo": f"http://127.0.0.1:{echo}/invocations",
        "haproxy": f"http://127.0.0.1:{front}/invocations",
        "roundhouse": f"http://127.0.0.1:{own}/endpoints/echo/invocations",
    }
    with tempfile.TemporaryDirectory() as work:
        files = {name: Path(work) / name for name in ("haproxy.cfg", "roundhouse.toml", "wrk.lua")}
        threads = os.cpu_count()
        files["haproxy.cfg"].write_text(HAPROXY.format(threads=threads, port=front, echo=echo))
        files["roundhouse.toml"].write_text(ROUNDHOUSE.format(port=own, echo=echo))
        files["wrk.lua"].write_text(
            f"wrk.method = 'POST'\nwrk.body = {json.dumps(body)}\n"
            "wrk.headers['Content-Type'] = 'application/json'\n" + SUMMARY)
        commands = {
            "echo": [options.loadtest, "echo", "--listen", f"127.0.0.1:{echo}"],
            "haproxy": ["haproxy", "-db", "-f", str(files["haproxy.cfg"])],
            "roundhouse": [options.roundhouse, "serve", "--config", str(files["roundhouse.toml"])],
        }
        if options.against:
            before = free_port()
            config = Path(work) / "before.toml"
            config.write_text(ROUNDHOUSE.format(port=before, echo=echo))
            urls["before"] = f"http://127.0.0.1:{before}/endpoints/echo/invocations"
            commands["before"] = [options.against, "serve", "--config", str(config)]
            PEERS.append("before")
        running = []
        try:
            for peer in PEERS:
                running.append(answering(commands[peer], urls[peer], body.encode()))
            records = rounds(urls, files["wrk.lua"], options)
        finally:
            for process in reversed(running):
                started.stop(process)
    options.out.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True,
                            text=True, check=False).stdout.strip()
    haproxy = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=True)
    about = {
        "command": shlex.join(["python3", *sys.argv]), "commit": commit,
        "at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} processors, {platform.platform()}",
        "haproxy": haproxy.stdout.splitlines()[0],
    }
    (options.out / "results.json").write_text(json.dumps({**about, "records": records}, indent=1))
    lines = ["# A container behind Roundhouse and behind HAProxy", "",
             *(f"- {name}: {value}" for name, value in about.items()), "",
             f"Medians of {options.rounds} rounds, least and most in brackets; "
             f"bodies of {len(body)} bytes, echoed. Added is beyond the echo server itself in the "
             "same round.", ""]
    for connections in options.connections:
        lines += table(records, connections)
    (options.out / "README.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
