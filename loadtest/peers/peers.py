"""The servers that bench.py compares, by name in `SERVERS`: how each is started and asked.

All listen on free loopback ports, but Triton's SageMaker port, which takes no address.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import shutil
import socket
import zipfile
from pathlib import Path

from server import PAYLOAD, Call, Failed, Server

ECHO_MODELS = Path(__file__).resolve().parent / "echo"
MODELS = ("echo", "second")
JSON = {"Content-Type": "application/json"}
OCTETS = {"Content-Type": "application/octet-stream"}
# One worker per model, as everywhere else.
JAVA_SETTINGS = "default_workers_per_model=1\njob_queue_size=1000\nnumber_of_netty_threads=2\n"


class Echo(Server):
    """A bare HTTP server which returns the body: what the machine can do at all."""

    title = "axum echo"
    manages = False

    def start(self) -> None:
        self.launch(shlex.split(self.options.echo_command))
        self.url = self.announced()

    def invocation(self, model: str) -> Call:
        return Call("POST", self.url, PAYLOAD, OCTETS)


class SageMaker(Server):
    """A server with the routes of SageMaker's multi-model container contract at `url`."""

    url = ""

    def invocation(self, model: str) -> Call:
        return Call("POST", f"{self.url}/models/{model}/invoke", PAYLOAD, OCTETS)

    def loading(self, model: str) -> Call:
        body = json.dumps({"model_name": model, "url": str(self.models / model)})
        return Call("POST", f"{self.url}/models", body, JSON)

    def unloading(self, model: str) -> Call:
        return Call("DELETE", f"{self.url}/models/{model}")


class Roundhouse(SageMaker):
    """Asked for `echo` where the options say, and for `second` by the container contract."""

    title = "Roundhouse"

    def start(self) -> None:
        for model in MODELS:
            shutil.copytree(ECHO_MODELS / "roundhouse", self.models / model)
        places = {"{models}": str(self.models), "{work}": str(self.work)}
        command = shlex.split(self.options.roundhouse_command)
        for name, path in places.items():
            command = [part.replace(name, path) for part in command]
        self.launch(command)
        self.url = self.announced()
        if self.options.roundhouse_path.startswith("/models/"):
            self.succeed(self.loading("echo"))

    def invocation(self, model: str) -> Call:
        if model != "echo":
            return super().invocation(model)
        lines = [line for line in self.options.roundhouse_headers.split(";") if line.strip()]
        headers = {name.strip(): value.strip() for name, value in
                   (line.split(":", 1) for line in lines)}
        url = self.url + self.options.roundhouse_path
        return Call("POST", url, PAYLOAD, {**OCTETS, **headers})


class MultiModelServer(SageMaker):
    title = "multi-model-server"

    def start(self) -> None:
        self.venv = Environment(self, self.options.mms_venv)
        for model in MODELS:
            shutil.copytree(ECHO_MODELS / "mms", self.models / model)
        self.url = f"http://127.0.0.1:{free_port()}"
        config = self.work / "config.properties"
        # One address for both APIs makes it SageMaker's container.
        config.write_text(
            f"inference_address={self.url}\nmanagement_address={self.url}\nmodel_store=/\n"
            f"preload_model=false\n{JAVA_SETTINGS}")
        command = [self.venv.program("multi-model-server"), "--start", "--foreground",
                   "--mms-config", str(config)]
        self.launch(command, self.work, PYTHONPATH=str(self.venv.packages), **scratch(self.work))
        self.wait_for_ping(self.url)
        self.succeed(self.loading("echo"))

    def version(self) -> str | None:
        return self.venv.version("multi_model_server")


class Triton(SageMaker):
    """Takes and gives KServe's JSON, in which the payload is one string."""

    title = "Triton, python backend"

    def start(self) -> None:
        self.venv = Environment(self, self.options.triton_venv)
        packages, server = self.venv.packages, self.venv.packages / "pytriton/tritonserver"
        for model in MODELS:
            shutil.copytree(ECHO_MODELS / "triton", self.models / model / model)
        backend, empty = self.work / "backends/python", self.work / "empty"
        shutil.copytree(server / "backends/python", backend)
        release = packages.parent.name[len("python"):]
        shutil.copy(server / "python_backend_stubs" / release / "triton_python_backend_stub",
                    backend)
        empty.mkdir()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.launch(
            [str(server / "bin/tritonserver"), "--model-control-mode=explicit",
             f"--model-repository={empty}", f"--backend-directory={backend.parent}",
             "--allow-sagemaker=true", f"--sagemaker-port={port}", "--http-address=127.0.0.1",
             f"--http-port={free_port()}", "--allow-grpc=false", "--allow-metrics=false"],
            self.work, LD_LIBRARY_PATH=str(packages / "nvidia_pytriton.libs"),
            PATH=self.venv.search_path(), SAGEMAKER_MULTI_MODEL="true")
        self.wait_for_ping(self.url)
        self.succeed(self.loading("echo"))

    def invocation(self, model: str) -> Call:
        tensor = {"name": "IN", "shape": [1], "datatype": "BYTES", "data": [PAYLOAD]}
        body = json.dumps({"inputs": [tensor]})
        return Call("POST", f"{self.url}/models/{model}/invoke", body, JSON)

    def echoed(self, answer: str) -> str:
        return json.loads(answer)["outputs"][0]["data"][0]

    def version(self) -> str | None:
        release = re.search(r"server_version\s*\|\s*(\S+)", self.log.read_text(errors="replace"))
        wheel = self.venv.version("nvidia_pytriton")
        return f"{release.group(1) if release else '?'} (nvidia-pytriton {wheel})"


class TorchServe(Server):
    """Has an API of its own."""

    title = "TorchServe"

    def start(self) -> None:
        self.venv = Environment(self, self.options.torchserve_venv)
        for model in MODELS:
            with zipfile.ZipFile(self.models / f"{model}.mar", "w") as archive:
                for name in ("MAR-INF/MANIFEST.json", "handler.py"):
                    archive.write(ECHO_MODELS / "torchserve" / name, name)
        self.url, self.management = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        config = self.work / "config.properties"
        config.write_text(
            f"inference_address={self.url}\nmanagement_address={self.management}\n"
            f"metrics_address=http://127.0.0.1:{free_port()}\n"
            f"grpc_inference_port={free_port()}\ngrpc_management_port={free_port()}\n"
            f"{JAVA_SETTINGS}")
        self.launch([self.venv.program("torchserve"), "--start", "--foreground", "--ncs",
                     "--disable-token-auth", "--enable-model-api", "--model-store",
                     str(self.models), "--ts-config", str(config)],
                    self.work, **scratch(self.work))
        self.wait_for_ping(self.url)
        self.succeed(self.loading("echo"))

    def invocation(self, model: str) -> Call:
        return Call("POST", f"{self.url}/predictions/{model}", PAYLOAD, OCTETS)

    def loading(self, model: str) -> Call:
        query = f"model_name={model}&url={model}.mar&initial_workers=1&synchronous=true"
        return Call("POST", f"{self.management}/models?{query}")

    def unloading(self, model: str) -> Call:
        return Call("DELETE", f"{self.management}/models/{model}")

    def version(self) -> str | None:
        return self.venv.version("torchserve")


class Environment:
    """A virtual environment that a server is installed in."""

    def __init__(self, server: Server, path: str) -> None:
        found = sorted(Path(path).resolve().glob("lib/python3*/site-packages")) if path else []
        if not found:
            server.fail(f"{path!r} is no virtual environment; see --help")
        self.packages = found[0]

    def program(self, name: str) -> str:
        return str(self.packages.parents[2] / "bin" / name)

    def search_path(self) -> str:
        """A PATH on which an embedded Python finds this environment, and its packages by it."""
        return os.pathsep.join([str(self.packages.parents[2] / "bin"), os.environ["PATH"]])

    def version(self, package: str) -> str | None:
        found = [path.name for path in self.packages.glob(f"{package}-*.dist-info")]
        return found[0].split("-")[1].replace(".dist", "") if found else None


def scratch(folder: Path) -> dict[str, str]:
    """Where the Java servers keep their sockets and the number of their process."""
    return {"TMPDIR": str(folder), "TEMP": str(folder)}


def free_port() -> int:
    # multi-model-server takes none from 32767 on, which rules out the system's own choice.
    for port in random.sample(range(20000, 32767), 100):
        with contextlib.closing(socket.socket()) as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise Failed("no port is free")


SERVERS = {"echo": Echo, "roundhouse": Roundhouse, "mms": MultiModelServer, "triton": Triton,
           "torchserve": TorchServe}
