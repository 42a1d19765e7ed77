"""The servers of the generation bench, each asked in its own words for the same work."""

import http.client
import json
import os
import pathlib
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import started


class Server:
    """A process on loopback; `complete` yields the times at which tokens came."""

    def start(self, args, env=None):
        self.log = tempfile.TemporaryFile("w+")
        self.process = started.start(args, env=os.environ | (env or {}), stdout=self.log, stderr=self.log)

    def wait_until_ready(self, path):
        deadline = time.time() + 300
        while time.time() < deadline:
            assert self.process.poll() is None, self.text()
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError(self.text())

    def text(self):
        self.log.seek(0)
        return self.log.read()[-3000:]

    def stop(self):
        started.stop(self.process)

    def post(self, path, body):
        """Times of the events of a streamed answer, the first being that of the request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        times = [time.perf_counter()]
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        for line in response:
            if line.startswith(b"data: ") and self.is_token(line[6:].strip()):
                times.append(time.perf_counter())
        return times


def free_port():
    import socket
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Roundhouse(Server):
    def __init__(self, binary, store, target, memory, settings=(), env=None):
        self.port, self.target = free_port(), target
        self.cache = tempfile.TemporaryDirectory()
        env = {"ROUNDHOUSE_LOG_LEVEL": "warn"} | dict(env or {})
        self.start([binary, "serve", "--store", f"file://{store}/", "--cache-dir", self.cache.name,
                    "--memory", memory, "--listen", f"127.0.0.1:{self.port}", "--admin-listen", "127.0.0.1:0",
                    "--access-log", "off", *settings], env)
        self.wait_until_ready("/ping")

    def complete(self, prompt, tokens):
        return self.post("/v1/completions", {
            "model": self.target, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
            "ignore_eos": True, "min_tokens": tokens, "logprobs": 0})

    def is_token(self, data):
        return data != b"[DONE]" and bool(json.loads(data).get("choices"))

    def stop(self):
        super().stop()
        self.cache.cleanup()


class LlamaServer(Server):
    def __init__(self, binary, model, slots, context):
        self.port = free_port()
        self.start([binary, "-m", model, "--host", "127.0.0.1", "--port", str(self.port), "-t", "2", "-tb", "2",
                    "-np", str(slots), "-c", str(slots * context), "--no-webui", "-fa", "on"])
        self.wait_until_ready("/health")

    def complete(self, prompt, tokens):
        return self.post("/completion", {
            "prompt": prompt, "n_predict": tokens, "temperature": 0, "stream": True, "ignore_eos": True,
            "cache_prompt": False})

    def is_token(self, data):
        return not json.loads(data)["stop"]


def at_once(server, prompts, tokens):
    """Seconds until all prompts are answered side by side, and the times of their tokens."""
    times = [None] * len(prompts)

    def ask(index):
        times[index] = server.complete(prompts[index], tokens)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(prompts))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, times
