"""A server that bench.py starts, asks and stops. Which there are stands in peers.py."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

# 512 bytes.
PAYLOAD = json.dumps({"data": "x" * 500})


class Failed(Exception):
    """A server did not start, or did not answer as it must."""


@dataclass
class Call:
    """A request."""

    method: str
    url: str
    body: str = ""
    headers: dict = field(default_factory=dict)

    def send(self) -> tuple[int, str]:
        """The status and body of the answer, over a connection of its own."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
        with contextlib.closing(connection):
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request(self.method, path, self.body or None, self.headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")


class Server:
    """A server, which owns a process group and a scratch folder with its log.

    The models that it may be asked for are `echo` and, where it `manages` models by request,
    `second`.
    """

    title = ""
    manages = True

    def __init__(self, name: str, options: Namespace, folder: Path) -> None:
        self.name, self.options, self.work = name, options, folder / name
        self.models = self.work / "models"
        self.models.mkdir(parents=True)
        self.log = self.work / "log"
        self.process = None

    def start(self) -> None:
        """Returns when the server answers and the model `echo` is there."""
        raise NotImplementedError

    def invocation(self, model: str) -> Call:
        raise NotImplementedError

    def loading(self, model: str) -> Call:
        raise NotImplementedError

    def unloading(self, model: str) -> Call:
        raise NotImplementedError

    def version(self) -> str | None:
        """The release that is installed, where it can be told."""
        return None

    def echoed(self, answer: str) -> str:
        """What the model returned, taken out of an answer."""
        return answer

    def check(self, model: str) -> None:
        """Fails unless the model echoes what it is sent."""
        answer = self.succeed(self.invocation(model))
        try:
            echoed = self.echoed(answer)
        except (ValueError, LookupError, TypeError):
            echoed = None
        if echoed != PAYLOAD:
            self.fail(f"sent {PAYLOAD!r} and was answered {answer!r}")

    def cycle(self, model: str) -> dict:
        """Seconds that a load, the first answer and the unload of a model take."""
        times = [time.perf_counter()]
        for step in (
            lambda: self.succeed(self.loading(model)),
            lambda: self.check(model),
            lambda: self.succeed(self.unloading(model)),
        ):
            step()
            times.append(time.perf_counter())
        if self.invocation(model).send()[0] < 300:
            self.fail(f"{model} still answers after its unload")
        load, first, unload = (after - before for before, after in zip(times, times[1:]))
        return {"load": load, "first": first, "unload": unload, "total": times[-1] - times[0]}

    def succeed(self, call: Call) -> str:
        try:
            status, answer = call.send()
        except (OSError, http.client.HTTPException) as error:
            self.fail(f"{call.method} {call.url}: {error!r}")
        if not 200 <= status < 300:
            self.fail(f"{call.method} {call.url} was answered {status}: {answer}")
        return answer

    def fail(self, why: str) -> None:
        log = self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""
        raise Failed(f"{self.title}: {why}\nThe end of its log:\n{log}")

    def launch(self, command: list, cwd: Path | None = None, **variables: str) -> None:
        if not command or not shutil.which(command[0]):
            self.fail(f"there is no command {shlex.join(command)!r}; see --help")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=cwd, env={**os.environ, **variables}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True)

    def wait(self, ready: Callable[[], object], limit: float = 60.0) -> None:
        """Waits until `ready()` is true while the process runs."""
        end = time.monotonic() + limit
        while not ready():
            if self.process.poll() is not None:
                self.fail(f"ended with {self.process.returncode}")
            if time.monotonic() > end:
                self.fail(f"is not ready after {limit:.0f} s")
            time.sleep(0.1)

    def wait_for_ping(self, url: str) -> None:
        def answers() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException):
                return Call("GET", url + "/ping").send()[0] == 200
            return False

        self.wait(answers)

    def announced(self) -> str:
        """The URL in the line that says where the server listens."""
        line = re.compile(r"listening on (http://\S+)\s")
        self.wait(lambda: line.search(self.log.read_text(errors="replace")))
        return line.search(self.log.read_text(errors="replace")).group(1)

    def stop(self) -> None:
        """Ends the process group; it may take its time for half a minute."""
        if self.process is None:
            return
        group, end = self.process.pid, time.monotonic() + 30
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
        # The leader is not reaped before the rest is killed, so the group's number stays its own.
        looking = os.WEXITED | os.WNOWAIT | os.WNOHANG
        while self.process.returncode is None and time.monotonic() < end:
            if os.waitid(os.P_PID, group, looking):
                break
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self.process.wait()
