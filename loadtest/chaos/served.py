"""The server under test as a process: started, asked, killed, started again."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import started  # noqa: E402

START_WITHIN = 60.0


class Failed(Exception):
    """The server did not do what any server must: start, or end."""


class Served:
    """One server over its lives, which share a configuration and its folders.

    `lives` tells when it could be asked: [ready, stopped, how it ended], on the monotonic clock.
    """

    def __init__(self, binary: str, config: str, log: str, env: dict[str, str]) -> None:
        self.command = [binary, "serve", "--config", config]
        self.env = {**os.environ, **env}
        self.log = log
        self.process: subprocess.Popen | None = None
        self.data = self.admin = ""
        self.lives: list[list] = []

    def start(self) -> float:
        """Returns when it is ready: the seconds that took."""
        begun = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = started.start(self.command, stdout=subprocess.PIPE, stderr=log,
                                         stdin=subprocess.DEVNULL, env=self.env)
        found: dict[str, str] = {}
        ready = threading.Event()
        threading.Thread(target=read_lines, args=(self.process.stdout, found, ready),
                         daemon=True).start()
        if not ready.wait(START_WITHIN) or len(found) < 2:
            status = self.process.poll()
            started.kill(self.process)
            with open(self.log, "rb") as log:
                last = log.read()[-500:].decode(errors="replace")
            raise Failed(f"not ready after {time.monotonic() - begun:.1f} s (status {status}): {last}")
        self.data, self.admin = found["data"], found["admin"]
        now = time.monotonic()
        self.lives.append([now, None, None])
        return now - begun

    def _over(self, how: str) -> None:
        if self.lives and self.lives[-1][1] is None:
            self.lives[-1][1:] = [time.monotonic(), how]

    def kill(self) -> None:
        self._over("kill")
        started.kill(self.process)

    def start_and_kill(self, after: float) -> None:
        """A life that ends before it is ready."""
        with open(self.log, "ab") as log:
            process = started.start(self.command, stdout=subprocess.DEVNULL, stderr=log,
                                    stdin=subprocess.DEVNULL, env=self.env)
        time.sleep(after)
        started.kill(process)

    def terminate(self, within: float) -> tuple[int | None, float]:
        """Its status (absent where it had to be killed) and the seconds its end took."""
        begun = time.monotonic()
        self._over("term")
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within), time.monotonic() - begun
        except subprocess.TimeoutExpired:
            started.kill(self.process)
            return None, time.monotonic() - begun

    def died(self) -> int | None:
        """Its status where it ended by itself."""
        status = self.process.poll() if self.process else None
        if status is not None:
            self._over("died")
        return status

    def was_stopped(self, begun: float, ended: float) -> str | None:
        """How a life ended, or that there was none, at any time between two instants."""
        for ready, stopped, how in reversed(self.lives):
            if ready <= begun:
                return how if stopped is not None and stopped <= ended else None
            if ready <= ended:
                return "start"
        return "start"

    def command_on(self, command: str, target: str, timeout: float = 30.0, **more) -> tuple[int, dict]:
        """An operator's command; the status (0 where there was no answer) and the answer."""
        body = json.dumps({"endpoint": "default", "target": target, **more})
        status, answer, _ = ask(self.admin, "POST", f"/admin/v1/{command}", body, {}, timeout)
        return status, as_json(answer)

    def look(self, path: str, timeout: float = 10.0) -> dict | None:
        """What an admin route tells; absent where there was no answer."""
        status, answer, _ = ask(self.admin, "GET", path, None, {}, timeout)
        return as_json(answer) if status == 200 else None

    def resident_bytes(self) -> int:
        """What the process holds in memory, as the system counts it."""
        with contextlib.suppress(OSError):
            with open(f"/proc/{self.process.pid}/statm", encoding="utf-8") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return 0

    def metrics(self) -> dict[str, float]:
        """Sums over labels by name; empty where there was no answer."""
        status, answer, _ = ask(self.admin, "GET", "/metrics", None, {}, 10.0)
        sums: dict[str, float] = {}
        for line in answer.decode(errors="replace").splitlines() if status == 200 else []:
            if not line.startswith("#") and " " in line:
                series, value = line.rsplit(" ", 1)
                name = series.split("{")[0]
                with contextlib.suppress(ValueError):
                    sums[name] = sums.get(name, 0.0) + float(value)
        return sums


def read_lines(stream, found: dict, ready: threading.Event) -> None:
    # To the end: a full pipe would stop the server.
    for line in stream:
        text = line.decode(errors="replace").strip()
        for name, mark in (("data", "listening on http://"), ("admin", "admin on http://")):
            if text.startswith(mark):
                found[name] = text[len(mark):].split()[0]
        if len(found) == 2:
            ready.set()
    ready.set()


def as_json(body: bytes) -> dict:
    try:
        found = json.loads(body)
        return found if isinstance(found, dict) else {"value": found}
    except ValueError:
        return {}


def ask(address: str, method: str, path: str, body, headers: dict, timeout: float):
    """Status, body and headers. Status 0: no whole answer; the body then says what was seen."""
    if not address:
        return 0, b"no server", {}
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        kinds = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, body, {**kinds, **headers})
        answer = connection.getresponse()
        return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error).encode(), {}
    finally:
        connection.close()
