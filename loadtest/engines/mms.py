"""multi-model-server as a container whose models we load and unload; see README.md beside it."""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import random
import signal
import socket
import statistics
import subprocess
import tempfile
import time

import serving
from serving import ask, tell, timed, until

options = argparse.ArgumentParser()
options.add_argument("--roundhouse", required=True)
options.add_argument("--mms-venv", required=True)
options.add_argument("--pairs", type=int, default=200)
options.add_argument("--cycles", type=int, default=10, help="switches between two models")
options.add_argument("--out", required=True)
options = options.parse_args()

NAMES = ("a", "b", "c")
results = {"machine": platform.platform(), "cores": os.cpu_count()}
MANIFEST = {
    "specificationVersion": "1.0",
    "implementationVersion": "1.0",
    "modelServerVersion": "1.1",
    "runtime": "python",
    "model": {"modelName": "own", "modelVersion": "1.0", "handler": "svc.py:handle"},
}
SERVICE = """def handle(data, context):
    return None if data is None else ["{name}:" + request["body"].decode() for request in data]
"""


def free_port():
    # multi-model-server takes none from 32767 on, which rules out the system's own choice.
    for port in random.sample(range(20000, 32767), 100):
        with contextlib.closing(socket.socket()) as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise SystemExit("no port is free")


def container(folder, port):
    url = f"http://127.0.0.1:{port}"
    scratch = folder / f"mms-{time.monotonic_ns()}"
    scratch.mkdir()
    # One address for both APIs makes it SageMaker's container.
    (scratch / "config.properties").write_text(
        f"inference_address={url}\nmanagement_address={url}\nmodel_store=/\npreload_model=false\n"
        "default_workers_per_model=1\nnumber_of_netty_threads=2\n")
    venv = pathlib.Path(options.mms_venv).resolve()
    [packages] = venv.glob("lib/python3*/site-packages")
    words = [venv / "bin/multi-model-server", "--start", "--foreground"]
    words += ["--mms-config", scratch / "config.properties"]
    # Where it keeps its sockets and the number of its process.
    env = {**os.environ, "PYTHONPATH": str(packages), "TMPDIR": str(scratch), "TEMP": str(scratch)}
    log = open(scratch / "log", "w")
    process = subprocess.Popen(words, cwd=scratch, env=env, stdout=log, stderr=log,
                               start_new_session=True)
    until("multi-model-server is well", lambda: ask(f"{url}/ping")[0] == 200)
    return process, url


def end(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def holds(url):
    return [model["modelName"] for model in json.loads(ask(f"{url}/models")[1])["models"]]


def serve(folder, url):
    return serving.serve(options.roundhouse, folder, "mms/*", f'url = "{url}"')


def invoke(data, name):
    status, body = ask(f"{data}/endpoints/default/invocations", b"x", "POST",
                       Content_Type="application/octet-stream",
                       X_Amzn_SageMaker_Target_Model=f"mms/{name}")
    assert (status, body) == (200, f"{name}:x".encode()), (status, body)


def direct(url, name):
    status, body = ask(f"{url}/models/{name}/invoke", b"x", "POST",
                       Content_Type="application/octet-stream")
    assert status == 200, (status, body)


def residents(admin):
    [device] = json.loads(ask(f"{admin}/admin/v1/residency")[1])["devices"]
    return sorted(it["target"] for it in device["residents"])


def unload(admin, name):
    target = json.dumps({"endpoint": "default", "target": f"mms/{name}"}).encode()
    status, body = ask(f"{admin}/admin/v1/unload", target, "POST", Content_Type="application/json")
    assert status == 200, (status, body)


def run(folder):
    port = free_port()
    process, url = container(folder, port)
    server, data, admin, settings = serve(folder, url)
    tell(settings)
    try:
        cold = timed(lambda: invoke(data, "a"))
        [own] = holds(url)
        tell(f"load and first answer {cold:.3f} s; multi-model-server calls it {own}")
        invoke(data, "b")
        invoke(data, "a")
        switched = timed(lambda: invoke(data, "c"))
        assert residents(admin) == ["mms/a", "mms/c"] and len(holds(url)) == 2
        tell(f"two have room: b left for c, which answered after {switched:.3f} s")
        results.update(cold_seconds=cold, switch_seconds=switched)

        switches = []
        for _ in range(options.cycles):
            # a is used in between, so that b and c take turns.
            switches.append(timed(lambda: invoke(data, "b")))
            invoke(data, "a")
            switches.append(timed(lambda: invoke(data, "c")))
            invoke(data, "a")
        results["switch_seconds_median"] = statistics.median(switches)
        tell(f"eviction, load and first answer, median of {len(switches)}: "
             f"{statistics.median(switches):.3f} s")

        [own] = [name for name in holds(url) if asks_as(url, name) == "a"]
        through, straight = [], []
        for _ in range(options.pairs):
            through.append(timed(lambda: invoke(data, "a")))
            straight.append(timed(lambda: direct(url, own)))
        medians = {"through": statistics.median(through), "direct": statistics.median(straight)}
        results["warm_seconds"] = medians
        tell(f"warm answer, median of {options.pairs} pairs: through {medians['through'] * 1e3:.2f} "
             f"ms, direct {medians['direct'] * 1e3:.2f} ms")

        end(process)
        process, _ = container(folder, port)
        assert not holds(url)
        until("its models are loaded again", lambda: again(data))
        assert len(holds(url)) == 1
        tell("killed and started anew: the next request had its model loaded again")

        server.kill()
        assert len(holds(url)) == 1
        server, data, admin, _ = serve(folder, url)
        until("what was left is deleted", lambda: not holds(url))
        tell("our server killed and started anew: what it had left was deleted")

        invoke(data, "a")
        invoke(data, "b")
        for name in ("a", "b"):
            unload(admin, name)
        assert holds(url) == [] and residents(admin) == []
        tell("unloaded by command: multi-model-server holds nothing")
    finally:
        server.stop()
        end(process)


def asks_as(url, name):
    return ask(f"{url}/models/{name}/invoke", b"x", "POST",
               Content_Type="application/octet-stream")[1].decode().split(":")[0]


def again(data):
    try:
        invoke(data, "a")
    except AssertionError:
        # Requests that come while it is down are told so.
        return False
    return True


with tempfile.TemporaryDirectory() as name:
    work = pathlib.Path(name)
    for model in NAMES:
        place = work / "store/mms" / model
        (place / "MAR-INF").mkdir(parents=True)
        (place / "MAR-INF/MANIFEST.json").write_text(json.dumps(MANIFEST))
        (place / "svc.py").write_text(SERVICE.format(name=model))
    run(work)
pathlib.Path(options.out).write_text(json.dumps(results, indent=1) + "\n")
