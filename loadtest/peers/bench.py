"""Compares Roundhouse with a bare axum echo and with three other model servers, in one session.

    python3 loadtest/peers/bench.py --out loadtest/results/DATE-MACHINE/peers

Every server holds an echo model (echo/). Part one: in each round wrk asks every server, first on
few and then on many connections, in an order that rotates by round; what counts is the ratio to
the axum echo within a round. Part two: a second model is loaded, asked once and unloaded, by
turns. Writes results.json (every sample) and README.md (tables) into --out. A server that is not
installed is left out with --only; README.md beside this file says how to install them. Paths and
commands are better given by environment variables (below): the command line stands in the results.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from peers import SERVERS
from server import Call, Failed, Server

ROUNDHOUSE = (
    "target/release/roundhouse serve --store file://{models} --cache-dir {work}/cache"
    " --handlers --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0"
    " --container-contract --container-models-root {models}"
)
SUMMARY = """
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'SUMMARY {"requests": %d, "duration_us": %d, "p50_us": %.1f, "p99_us": %.1f, '
    .. '"non_2xx": %d, "socket_errors": %d, "timeouts": %d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write, errors.timeout))
end
"""


def measure(server: Server, options: argparse.Namespace, seconds: int, connections: int) -> dict:
    """Asks a server for its echo model as often as it answers."""
    server.check("echo")
    call: Call = server.invocation("echo")
    # What JSON writes for these strings, Lua reads alike.
    lines = [f"wrk.method = {json.dumps(call.method)}", f"wrk.body = {json.dumps(call.body)}"]
    lines += [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}"
              for name, value in call.headers.items()]
    script = server.work / "wrk.lua"
    script.write_text("\n".join(lines) + SUMMARY)
    command = [options.wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency",
               "-s", str(script), call.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("SUMMARY ")]
    if not found:
        server.fail(f"wrk ended with {done.returncode}: {done.stdout}{done.stderr}")
    sample = json.loads(found[0][len("SUMMARY "):])
    if not sample["requests"]:
        server.fail(f"answered nothing in {seconds} s")
    sample["requests_per_second"] = sample["requests"] / sample.pop("duration_us") * 1e6
    return sample


def rotated(items: list, by: int) -> list:
    by %= len(items) or 1
    return items[by:] + items[:by]


def throughput(servers: list, options: argparse.Namespace) -> list:
    """Part one: one record per round, server and number of connections."""
    if options.warmup:
        for server in servers:
            measure(server, options, options.warmup, max(options.connections))
    records = []
    for number in range(options.rounds):
        for server in rotated(servers, number):
            for connections in options.connections:
                record = {"round": number + 1, "peer": server.name, "connections": connections,
                          "load_average": os.getloadavg()[0]}
                record.update(measure(server, options, options.seconds, connections))
                records.append(record)
                print("round {round}: {peer} on {connections}: {requests_per_second:.0f}/s, p50 "
                      "{p50_us:.0f} us, p99 {p99_us:.0f} us".format(**record), flush=True)
    return records


def cycles(servers: list, options: argparse.Namespace) -> list:
    """Part two: one record per cycle and server, in seconds."""
    managing = [server for server in servers if server.manages]
    return [{"cycle": number + 1, "peer": server.name, **server.cycle("second")}
            for number in range(options.cycles) for server in rotated(managing, number)]


def ratios(records: list, peer: str, to: str, connections: int) -> list:
    """The requests per second of `peer` over those of `to`, round by round."""
    def by_round(name: str) -> dict:
        return {record["round"]: record["requests_per_second"] for record in records
                if (record["peer"], record["connections"]) == (name, connections)}

    ours, theirs = by_round(peer), by_round(to)
    return [rate / theirs[number] for number, rate in ours.items() if number in theirs]


def spread(values: list) -> str:
    if not values:
        return "-"
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def throughput_table(servers: list, records: list, connections: int) -> list:
    lines = [f"## {connections} connection{'s' if connections > 1 else ''}", "",
             "| peer | requests/s | p50 ms | p99 ms | errors | of the axum echo |"
             " Roundhouse has, times this |", "|---|--:|--:|--:|--:|--:|--:|"]
    for server in servers:
        rows = [record for record in records
                if (record["peer"], record["connections"]) == (server.name, connections)]
        rate, p50, p99 = (median(row[key] for row in rows)
                          for key in ("requests_per_second", "p50_us", "p99_us"))
        errors = sum(row["non_2xx"] + row["socket_errors"] + row["timeouts"] for row in rows)
        lines.append(f"| {server.title} | {rate:.0f} | {p50 / 1e3:.3f} | {p99 / 1e3:.3f} | {errors}"
                     f" | {spread(ratios(records, server.name, 'echo', connections))}"
                     f" | {spread(ratios(records, 'roundhouse', server.name, connections))} |")
    return [*lines, ""]


def cycle_table(servers: list, records: list) -> list:
    lines = ["## Load, first answer, unload", "", "Seconds; medians of the cycles.", "",
             "| peer | load | first answer | unload | total (least to most) |",
             "|---|--:|--:|--:|--:|"]
    for server in servers:
        rows = [record for record in records if record["peer"] == server.name]
        if rows:
            load, first, unload = (median(row[part] for row in rows)
                                   for part in ("load", "first", "unload"))
            lines.append(f"| {server.title} | {load:.4f} | {first:.4f} | {unload:.4f}"
                         f" | {spread([row['total'] for row in rows])} |")
    return lines


def page(servers: list, results: dict) -> str:
    machine, settings = results["machine"], results["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [f"# Peers, {results['started'][:10]}", "",
             f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux "
             f"{machine['kernel']}; commit {machine['commit']}; {versions}.", "",
             "```sh", results["command"], "```", "",
             f"Rounds: {settings['rounds']}, of {settings['seconds']} s each; cycles: "
             f"{settings['cycles']}. Every sample is in `results.json`. Figures are medians of the "
             "rounds; ratios are taken within a round: median (least to most). What is unfair in "
             "the comparison stands in `loadtest/peers/README.md`.", ""]
    for connections in settings["connections"]:
        lines += throughput_table(servers, results["throughput"], connections)
    lines += cycle_table(servers, results["cycles"]) if results["cycles"] else []
    return "\n".join(lines).rstrip() + "\n"


def said(command: list, pattern: str) -> str:
    """What a program says that matches, or a question mark."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "?"
    found = re.search(pattern, done.stdout + done.stderr)
    return found.group() if found else "?"


def machine_facts() -> dict:
    def value(file: str, key: str) -> str:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "?")

    return {
        "cpu": value("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(value("/proc/meminfo", "MemTotal").split()[0]) / 2**20),
        "kernel": platform.release(),
        "commit": said(["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"],
                       r"^[0-9a-f]{10}"),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def setting(name: str, default: str, text: str) -> None:
        variable = "BENCH_" + name.upper().replace("-", "_")
        parser.add_argument(f"--{name}", default=os.environ.get(variable, default), metavar="TEXT",
                            help=f"{text} [{variable}; default: {default or 'none'}]")

    def numbers(text: str) -> list:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SERVERS),
                        help=f"some of {','.join(SERVERS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--warmup", type=int, default=2, help="seconds before, not counted")
    parser.add_argument("--connections", type=numbers, default=[1, 32], help="as in 1,32")
    parser.add_argument("--cycles", type=int, default=11, help="of part two")
    setting("wrk", "wrk", "the load generator")
    setting("echo-command", "", "starts the axum echo, which prints 'listening on URL'")
    setting("roundhouse-command", ROUNDHOUSE, "starts Roundhouse, which prints the same;"
            " {models} is the folder of its echo models, {work} a scratch folder")
    setting("roundhouse-path", "/endpoints/default/invocations", "where part one asks it;"
            " /models/echo/invoke is loaded by the container contract first")
    setting("roundhouse-headers", "X-Amzn-SageMaker-Target-Model: echo",
            "of its requests in part one, separated by semicolons")
    setting("mms-venv", "", "the environment of multi-model-server")
    setting("triton-venv", "", "the environment of nvidia-pytriton")
    setting("torchserve-venv", "", "the environment of torchserve")
    options = parser.parse_args()
    unknown = [name for name in options.only if name not in SERVERS]
    if unknown:
        parser.error(f"--only does not know {', '.join(unknown)}")
    return options


def run(options: argparse.Namespace) -> None:
    results = {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python3", *sys.argv]),
        "settings": {key: getattr(options, key) for key in
                     ("rounds", "seconds", "warmup", "connections", "cycles", "only",
                      "roundhouse_path", "roundhouse_headers")},
        "machine": machine_facts(),
        "versions": {"wrk": said([options.wrk, "-v"], r"\d+\.\d[\w.]*"),
                     "Python": platform.python_version(),
                     "Java": said(["java", "-version"], r"\d+\.\d[\w.]*")},
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-")))
        # A server's workers may run as another user.
        folder.chmod(0o755)
        servers = [SERVERS[name](name, options, folder) for name in options.only]
        for server in servers:
            print(f"starting {server.title}", flush=True)
            stack.callback(server.stop)
            server.start()
            server.check("echo")
            if server.version():
                results["versions"][server.title] = server.version()
        results["throughput"] = throughput(servers, options)
        results["cycles"] = cycles(servers, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "README.md").write_text(page(servers, results))
    print(f"results are in {options.out}")


def main() -> int:
    # So that the servers are stopped then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(arguments())
    except Failed as failure:
        print(f"bench: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
