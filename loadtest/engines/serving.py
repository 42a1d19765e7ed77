"""A server of ours with containers behind it, and how it and they are asked."""

import contextlib
import pathlib
import sys
import time
import urllib.error
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from started import Server

PATIENCE = 120


def tell(line):
    print(line, flush=True)


def ask(url, body=None, method=None, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def until(what, found):
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        with contextlib.suppress(OSError):
            if found():
                return
        time.sleep(0.05)
    raise SystemExit(f"not within {PATIENCE} s: {what}")


def timed(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def serve(binary, folder, targets, where):
    """Starts a server over the store in `folder` whose `targets` are loaded into a container of the
    multi-model contract; `where` are the keys that say where that is. Returns the server, the
    addresses of its two ports, and its settings."""
    settings = f"""version = 1
[memory]
budget = "100MiB"
[cache]
dir = "{folder}/cache"
[store]
settle = "0s"
[[endpoint]]
name = "default"
[[endpoint.engine]]
target = "{targets}"
contract = "multi-model"
{where}
memory = "40MiB"
[[endpoint.mount]]
uri = "file://{folder}/store/"
"""
    (folder / "roundhouse.toml").write_text(settings)
    server = Server(binary, ["--config", folder / "roundhouse.toml"], log=open(folder / "log", "a"))
    return server, server.data_url, server.admin_url, settings
