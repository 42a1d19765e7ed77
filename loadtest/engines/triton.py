"""Triton as a container that we start, whose models we load and unload; see README.md beside it."""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import shutil
import socket
import statistics
import tempfile

import serving
from serving import ask, tell, timed, until

options = argparse.ArgumentParser()
options.add_argument("--roundhouse", required=True)
options.add_argument("--triton-venv", required=True)
options.add_argument("--cycles", type=int, default=5, help="switches between two models")
options.add_argument("--out", required=True)
options = options.parse_args()

NAMES = ("a", "b", "c")
results = {"machine": platform.platform(), "cores": os.cpu_count()}
CONFIG = """backend: "python"
input [{ name: "IN", data_type: TYPE_STRING, dims: [1] }]
output [{ name: "OUT", data_type: TYPE_STRING, dims: [1] }]
instance_group [{ count: 1, kind: KIND_CPU }]
"""
MODEL = """import numpy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        said = numpy.array([b"own name: NAME"], dtype=object)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", said)]) for _ in requests]
"""
BODY = json.dumps({"inputs": [{"name": "IN", "shape": [1], "datatype": "BYTES", "data": ["x"]}]})


def free_port():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def triton(folder):
    """Triton's command, and its variables; the port for SageMaker's contract is ours to choose."""
    venv = pathlib.Path(options.triton_venv).resolve()
    [packages] = venv.glob("lib/python3*/site-packages")
    server = packages / "pytriton/tritonserver"
    backends, empty = folder / "backends", folder / "empty"
    shutil.copytree(server / "backends/python", backends / "python")
    release = packages.parent.name[len("python"):]
    stub = server / "python_backend_stubs" / release / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    empty.mkdir()
    [wheel] = packages.glob("nvidia_pytriton-*.dist-info")
    results["triton"] = wheel.name.removesuffix(".dist-info")
    command = [str(server / "bin/tritonserver"), "--model-control-mode=explicit",
               f"--model-repository={empty}", f"--backend-directory={backends}",
               "--allow-sagemaker=true", "--sagemaker-port={port}", "--http-address=127.0.0.1",
               f"--http-port={free_port()}", "--allow-grpc=false", "--allow-metrics=false",
               # Else it says that it is not well while a model is loaded.
               "--strict-readiness=false"]
    variables = {"LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
                 "PATH": os.pathsep.join([str(venv / "bin"), os.environ["PATH"]]),
                 "SAGEMAKER_MULTI_MODEL": "true"}
    return command, variables


def serve(folder):
    command, variables = triton(folder)
    table = ", ".join(f"{name} = {json.dumps(value)}" for name, value in variables.items())
    where = f"command = {json.dumps(command)}\nenvironment = {{ {table} }}"
    return serving.serve(options.roundhouse, folder, "triton/*", where)[:3]


def invoke(data, name):
    status, body = ask(f"{data}/endpoints/default/invocations", BODY.encode(), "POST",
                       Content_Type="application/json",
                       X_Amzn_SageMaker_Target_Model=f"triton/{name}")
    assert status == 200, (status, body)
    said = json.loads(body)["outputs"][0]["data"]
    assert said == [f"own name: {name}"], said


def residency(admin):
    return json.loads(ask(f"{admin}/admin/v1/residency")[1])


def residents(admin):
    [device] = residency(admin)["devices"]
    return sorted(it["target"] for it in device["residents"])


def container(admin):
    [row] = [it for it in residency(admin)["containers"] if it["kind"] == "models"]
    return row


def holds(url):
    # Triton lists them without their names where a TargetModel was said.
    return len(json.loads(ask(f"{url}/models")[1])["models"])


def run(folder):
    server, data, admin = serve(folder)
    try:
        cold = timed(lambda: invoke(data, "a"))
        row = container(admin)
        tell(f"start, load and first answer {cold:.3f} s; the container as operators see it:")
        tell(json.dumps({key: value for key, value in row.items() if key != "address"}))
        assert row["state"] == "healthy" and row["pid"] and row["models"] == 1, row
        url = row["address"]
        invoke(data, "b")
        invoke(data, "a")
        switched = timed(lambda: invoke(data, "c"))
        assert residents(admin) == ["triton/a", "triton/c"] and holds(url) == 2
        tell(f"two have room: b left for c, which answered after {switched:.3f} s")
        switches = []
        for _ in range(options.cycles):
            # a is used in between, so that b and c take turns.
            switches.append(timed(lambda: invoke(data, "b")))
            invoke(data, "a")
            switches.append(timed(lambda: invoke(data, "c")))
            invoke(data, "a")
        tell(f"eviction, load and first answer, median of {len(switches)}: "
             f"{statistics.median(switches):.3f} s")
        results.update(cold_seconds=cold, switch_seconds=switched,
                       switch_seconds_median=statistics.median(switches))

        os.kill(row["pid"], 9)
        until("its models are loaded again", lambda: again(data))
        row = container(admin)
        assert row["restarts"] == 1 and "signal 9" in row["failure"], row
        assert holds(row["address"]) == 1
        tell("killed: it was started again, and the next request had its model loaded again")

        target = json.dumps({"endpoint": "default", "target": "triton/a"}).encode()
        status, body = ask(f"{admin}/admin/v1/unload", target, "POST",
                           Content_Type="application/json")
        assert status == 200, (status, body)
        assert holds(row["address"]) == 0 and residents(admin) == []
        tell("unloaded by command: Triton holds nothing")
        process = row["pid"]
    finally:
        server.stop()
    # Its keeper gives it the time of stop_timeout, also when we are gone.
    until("Triton has ended", lambda: not pathlib.Path(f"/proc/{process}").exists())
    tell("our server ended, and Triton with it")


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
        # Triton's repository of one model: a folder that is called like the model.
        place = work / "store/triton" / model / model
        (place / "1").mkdir(parents=True)
        (place / "config.pbtxt").write_text(CONFIG)
        (place / "1/model.py").write_text(MODEL.replace("NAME", model))
    run(work)
pathlib.Path(options.out).write_text(json.dumps(results, indent=1) + "\n")
