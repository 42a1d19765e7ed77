"""Runs a real Prometheus on a demo server, and asks it everything that the dashboard and the alerts ask.

usage: try.py --roundhouse target/release/roundhouse [--prometheus prometheus] [--seconds 40]

Prints for each panel how many series it has, and for each alert its state. Fails where an expression or
a rule is refused, a metric's type or help is not what metrics.md says, or the server is not scraped.
Everything listens on loopback and is stopped at the end.
"""

import argparse
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
TARGETS = ["support/base", "support/aurora", "adapters/garnet", "search/encoder", "tickets/intent.tar.gz",
           "support/cobalt", "support/no-such-model"]


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def asked(url, path, **query):
    return json.loads(get(f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}"))["data"]


def invoke(url, target):
    """One request; refusals are part of the picture."""
    body = json.dumps({"inputs": "When are you open?", "parameters": {"max_new_tokens": 16}}).encode()
    headers = {"Content-Type": "application/json", "X-Amzn-SageMaker-Target-Model": target}
    try:
        urllib.request.urlopen(urllib.request.Request(f"{url}/endpoints/demo/invocations", body, headers), timeout=60).read()
    except urllib.error.HTTPError as refused:
        refused.read()


def demo(command, folder):
    """A demo server: its process, data and admin address."""
    log = (folder / "roundhouse.log").open("w")
    process = subprocess.Popen(
        [command, "demo", "--data-dir", folder / "demo", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE, stderr=log, text=True)
    found = {}
    for line in process.stdout:
        if hit := re.match(r"(listening|admin) on (\S+)", line):
            found[hit[1]] = hit[2]
        if len(found) == 2:
            return process, found["listening"], found["admin"]
    sys.exit(f"the demo did not start: {(folder / 'roundhouse.log').read_text()[-2000:]}")


def prometheus(command, folder, admin):
    """A Prometheus that scrapes it each second, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = (HERE / "prometheus.yaml").read_text()
    config = config.replace("15s", "1s").replace("alerts.yaml", str(HERE / "alerts.yaml"))
    config = config.replace("127.0.0.1:8082", admin.removeprefix("http://"))
    (folder / "prometheus.yaml").write_text(config)
    process = subprocess.Popen(
        [command, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/tsdb",
         f"--web.listen-address={address}"], stderr=(folder / "prometheus.log").open("w"))
    for _ in range(100):
        try:
            get(f"http://{address}/-/ready")
            return process, f"http://{address}"
        except OSError:
            time.sleep(0.1)
    sys.exit(f"Prometheus did not start: {(folder / 'prometheus.log').read_text()[-2000:]}")


def panels(url):
    """How many series each panel has; those without are told apart, for a demo has no tenants' limits."""
    with_series = 0
    for panel in json.loads((HERE / "dashboard.json").read_text())["panels"]:
        counts = []
        for target in panel.get("targets", []):
            text = target["expr"].replace("$__rate_interval", "30s").replace("$instance", ".*")
            counts.append(len(asked(url, "query", query=text)["result"]))
        if counts:
            with_series += any(counts)
            print(f"  {panel['title']:<32}{' + '.join(map(str, counts))}")
    return with_series


def alerts(url):
    broken = []
    for rule in asked(url, "rules")["groups"][0]["rules"]:
        print(f"  {rule['name']:<32}{rule['state']}")
        if rule["health"] != "ok":
            broken.append(f"{rule['name']}: {rule.get('lastError')}")
    return broken


def metadata(url):
    """Type and help of what was scraped against the table."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| \w+ \| [^|]* \| (.+) \|$", (HERE / "metrics.md").read_text(), re.M)
    table = {name: (kind, meaning) for name, kind, meaning in rows}
    broken, count = [], 0
    for name, told in asked(url, "metadata").items():
        if name.startswith("roundhouse_"):
            count += 1
            kind, meaning = table.get(name, ("nothing", ""))
            if name == "roundhouse_engine_step_rows":
                kind = "summary"
            if told[0]["type"] != kind or told[0]["help"].rstrip(".") != meaning:
                broken.append(f"{name}: scraped as {told[0]}")
    print(f"{count} metrics scraped, of {len(table)} in the table")
    return broken


def look(data, url, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for target in TARGETS:
            invoke(data, target)
    up = asked(url, "query", query='up{job="roundhouse"}')["result"]
    broken = [] if up and up[0]["value"][1] == "1" else [f"up: {up}"]
    broken += metadata(url)
    print("panels (series per expression):")
    with_series = panels(url)
    print(f"{with_series} panels have series\nalerts:")
    return broken + alerts(url)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roundhouse", required=True)
    parser.add_argument("--prometheus", default="prometheus")
    parser.add_argument("--seconds", type=float, default=40)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, running = pathlib.Path(name), []
        try:
            server, data, admin = demo(args.roundhouse, folder)
            running.append(server)
            process, url = prometheus(args.prometheus, folder, admin)
            running.append(process)
            broken = look(data, url, args.seconds)
        finally:
            for process in running:
                process.send_signal(signal.SIGTERM)
            for process in running:
                process.wait(timeout=60)
    for line in broken:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(1 if broken else 0)


main()
