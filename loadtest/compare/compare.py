"""The same open-loop scenario against Roundhouse and its peers, and the table.

    python3 loadtest/compare/compare.py --out loadtest/results/DATE-MACHINE/compare

Two scenarios, each at several rates, each server alone on the machine, by turns in every round:

- echo: a Python model that gives back what it gets, by the container contract (TorchServe: its own
  route), at Poisson times: what a server adds to somebody's code. Roundhouse, multi-model-server, Triton,
  TorchServe.
- text: one GGUF file (--gguf), streamed through OpenAI's API: the time to the first token, between
  tokens, and whole. Roundhouse and llama-server.

Latency counts from the time at which a request was to be sent. Writes compare.json (every run),
README.md (the tables), compare.svg, and the report of each run. A peer that is not installed is
left out with --only; ../peers/README.md says how to install them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "peers"))
from bench import ROUNDHOUSE, machine_facts, rotated  # noqa: E402
from peers import SERVERS as PEERS  # noqa: E402
from peers import free_port  # noqa: E402
from server import Call, Failed, Server  # noqa: E402
from table import chart, page  # noqa: E402

ECHO = ("roundhouse", "mms", "triton", "torchserve")
TEXT = ("roundhouse-text", "llama-server")


class RoundhouseText(Server):
    """Roundhouse over a folder with one GGUF file."""

    title = "Roundhouse"

    def start(self) -> None:
        gguf = Path(self.options.gguf).resolve()
        shutil.copy(gguf, self.models)
        self.target = gguf.name
        self.launch([self.options.roundhouse, "serve", "--store", f"file://{self.models}/",
                     "--cache-dir", str(self.work / "cache"), "--listen", "127.0.0.1:0",
                     "--admin-listen", "127.0.0.1:0", "--context", str(self.options.context)])
        self.url = self.announced()


class LlamaServer(Server):
    title = "llama-server"

    def start(self) -> None:
        self.target = Path(self.options.gguf).name
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        slots, context = self.options.slots, self.options.context
        self.launch([self.options.llama_server, "-m", str(Path(self.options.gguf).resolve()), "--host",
                     "127.0.0.1", "--port", str(port), "-t", str(len(os.sched_getaffinity(0))), "-np",
                     str(slots), "-c", str(slots * context), "--no-webui", "-fa", "on"])
        self.wait(lambda: healthy(self.url), limit=120)


SERVERS = PEERS | {"roundhouse-text": RoundhouseText, "llama-server": LlamaServer}


def healthy(url: str) -> bool:
    with contextlib.suppress(OSError):
        return Call("GET", f"{url}/health").send()[0] == 200
    return False


def words(name: str, server: Server, options: argparse.Namespace, work: Path) -> list[str]:
    """How loadtest asks this server."""
    if name in TEXT:
        return ["--face", "openai", "--stream", "--exact", "--tokens", str(options.tokens),
                "--targets", server.target, "--deadline", "120"]
    case = {"target": "echo", "body": json.loads(server.invocation("echo").body), "contains": ["x" * 500]}
    expected = work / "expected.json"
    expected.write_text(json.dumps([case]))
    face = "predictions" if name == "torchserve" else "container"
    return ["--face", face, "--expect", str(expected), "--deadline", "30"]


def measure(name: str, server: Server, rate: float, seed: int, options: argparse.Namespace, out: Path) -> dict:
    """One run of loadtest; its report as data."""
    command = [options.loadtest, "zipf", "--url", server.url, "--admin", "none", "--rate", str(rate),
               "--seconds", str(options.seconds), "--seed", str(seed), "--out", str(out),
               *words(name, server, options, server.work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not (out / "report.json").exists():
        server.fail(f"{shlex.join(command)}: {done.stderr}")
    (out / "requests.csv").unlink()
    return json.loads((out / "report.json").read_text())


def one(name: str, options: argparse.Namespace, folder: Path) -> Server:
    """The server, started; the caller stops it."""
    folder.mkdir()
    folder.chmod(0o755)
    server = SERVERS[name](name, options, folder)
    try:
        server.start()
        if name in ECHO:
            server.check("echo")
    except BaseException:
        server.stop()
        raise
    return server


def scenario(title: str, names: list[str], rates: list[float], options: argparse.Namespace) -> list[dict]:
    """Every server at every rate in every round, alone; the order rotates."""
    runs, left_out = [], {}
    for turn in range(options.rounds):
        for name in rotated([name for name in names if name not in left_out], turn):
            with tempfile.TemporaryDirectory(prefix="compare-") as scratch:
                try:
                    server = one(name, options, Path(scratch) / "server")
                except (Failed, OSError) as failure:
                    left_out[name] = str(failure).splitlines()[0]
                    print(f"left out: {name}: {left_out[name]}", file=sys.stderr)
                    continue
                try:
                    # Loads, compilers that learn, connections: not counted.
                    measure(name, server, rates[0], 0, options, Path(scratch) / "warm")
                    for rate in rates:
                        out = options.out / "runs" / f"{title}-{name}-{rate:g}-{turn}"
                        report = measure(name, server, rate, turn + 1, options, out)
                        runs.append({"scenario": title, "server": name, "title": server.title, "rate": rate,
                                     "round": turn, "report": report})
                        print(f"{title} {name} {rate:g}/s: {report['outcomes']}", flush=True)
                finally:
                    server.stop()
    for name, why in left_out.items():
        runs.append({"scenario": title, "server": name, "title": SERVERS[name].title, "left_out": why})
    return runs


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def setting(name: str, default: str, text: str) -> None:
        variable = "BENCH_" + name.upper().replace("-", "_")
        parser.add_argument(f"--{name}", default=os.environ.get(variable, default), metavar="TEXT",
                            help=f"{text} [{variable}; default: {default or 'none'}]")

    def numbers(text: str) -> list[float]:
        return [float(part) for part in text.split(",")]

    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*ECHO, *TEXT],
                        help=f"some of {','.join([*ECHO, *TEXT])}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of each run")
    parser.add_argument("--echo-rates", type=numbers, default=[200, 1000], help="requests per second")
    parser.add_argument("--text-rates", type=numbers, default=[0.5, 1.5], help="requests per second")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--slots", type=int, default=8, help="sequences that llama-server runs at a time")
    parser.add_argument("--context", type=int, default=512, help="tokens of a sequence")
    setting("gguf", "", "the model of the scenario text")
    setting("roundhouse", "target/release/roundhouse", "the server")
    setting("loadtest", "target/release/roundhouse-loadtest", "the load generator")
    setting("llama-server", "llama-server", "llama.cpp's server")
    for name in ("mms", "triton", "torchserve"):
        setting(f"{name}-venv", "", f"the environment of {name}")
    options = parser.parse_args()
    unknown = set(options.only) - set(ECHO) - set(TEXT)
    if unknown:
        parser.error(f"--only does not know {', '.join(sorted(unknown))}")
    if set(options.only) & set(TEXT) and not options.gguf:
        parser.error("the scenario text needs --gguf; --only leaves it out")
    # What peers.py asks of its options.
    options.roundhouse_command = ROUNDHOUSE.replace("target/release/roundhouse", options.roundhouse)
    options.roundhouse_path, options.roundhouse_headers, options.echo_command = "/models/echo/invoke", "", ""
    return options


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    begun = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    runs = []
    for title, known, rates in (("echo", ECHO, options.echo_rates), ("text", TEXT, options.text_rates)):
        names = [name for name in known if name in options.only]
        if names:
            runs += scenario(title, names, rates, options)
    results = {
        "started": begun, "machine": machine_facts(), "runs": runs,
        "command": shlex.join(["python3", *sys.argv]),
        "settings": {key: getattr(options, key) for key in ("rounds", "seconds", "tokens", "slots", "context")}
        | {"gguf": Path(options.gguf).name},
    }
    (options.out / "compare.json").write_text(json.dumps(results, indent=1) + "\n")
    text = page(results, median)
    (options.out / "README.md").write_text(text)
    (options.out / "compare.svg").write_text(chart(results, median))
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        sys.exit(f"compare: {failure}")
