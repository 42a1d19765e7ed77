"""A stand-in for the server: starts a worker on a socketpair and speaks frames with it."""
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import unittest

WORKER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "roundhouse_worker.py")
READY, FAILED, ANSWER, BEGIN, CHUNK, END, ERROR = 1, 2, 3, 4, 5, 6, 7
BYTES = "application/octet-stream"


def script(text, **more):
    """The files of a handler with this script, and with others."""
    return dict({"code/inference.py": text}, **more)


def have(*names):
    """Skips a test where one of these modules is missing."""
    for name in names:
        try:
            __import__(name)
        except ImportError:
            return unittest.skip("needs " + name)
    return lambda test: test


def npy(values, kind=None):
    """The bytes of an .npy file."""
    import numpy
    out = io.BytesIO()
    numpy.save(out, numpy.array(values, dtype=kind))
    return out.getvalue()


def invoke(number, body=b"", content_type="", accept="", meta=None, stream=False):
    """Returns the bytes of an INVOKE frame."""
    body = body.encode() if isinstance(body, str) else body
    kind, accept = content_type.encode(), accept.encode()
    meta = json.dumps(meta).encode() if meta is not None else b""
    head = struct.pack("<BQBHHI", 1, number, int(stream), len(kind), len(accept), len(meta))
    frame = head + kind + accept + meta + body
    return struct.pack("<I", len(frame)) + frame


def cancel(number):
    return struct.pack("<IBQ", 9, 2, number)


class Reply:
    """One frame of a worker, taken apart."""

    def __init__(self, frame):
        self.kind, rest = frame[0], frame[1:]
        self.id = self.status = self.type = self.body = None
        self.headers = {}
        if self.kind in (READY, FAILED):
            self.said = json.loads(rest)
            return
        self.id, rest = struct.unpack_from("<Q", rest)[0], rest[8:]
        if self.kind == ERROR:
            self.status, self.said = struct.unpack_from("<H", rest)[0], json.loads(rest[2:])
        elif self.kind in (ANSWER, BEGIN):
            self.status, kind, meta = struct.unpack_from("<HHI", rest)
            rest = rest[8:]
            self.type = rest[:kind].decode()
            if meta:
                self.headers = json.loads(rest[kind:kind + meta])["headers"]
            self.body = rest[kind + meta:]
        else:
            self.body = rest

    @property
    def message(self):
        return self.said["message"]

    def json(self):
        return json.loads(self.body)


class Worker:
    """One worker process over a folder of files; `files` maps paths to texts or bytes."""

    def __init__(self, files, environment=None, code="code", **settings):
        self.folder = tempfile.TemporaryDirectory()
        model_dir = os.path.join(self.folder.name, "model")
        work = os.path.join(self.folder.name, "work")
        os.makedirs(model_dir), os.makedirs(work)
        for path, content in files.items():
            path = os.path.join(model_dir, path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if isinstance(content, str):
                content = textwrap.dedent(content).encode()
            with open(path, "wb") as file:
                file.write(content)
        code_dir = os.path.join(model_dir, code)
        settings = dict({"model_dir": model_dir, "code_dir": code_dir if os.path.isdir(code_dir) else None,
                         "name": "shop:test", "framework": "auto", "max_response": 1 << 26,
                         "worker": 0, "workers": 1}, **settings)
        environment = dict({"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": work, "TMPDIR": work,
                            "SAGEMAKER_PROGRAM": "inference.py", "OMP_NUM_THREADS": "1"}, **(environment or {}))
        self.log = open(os.path.join(self.folder.name, "log"), "w+b")
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(60)
        self.process = subprocess.Popen(
            [sys.executable, "-s", "-B", "-u", WORKER, json.dumps(settings)], stdin=theirs,
            stdout=self.log, stderr=self.log, cwd=work, env=environment)
        theirs.close()
        self._hello = None

    @property
    def hello(self):
        """The worker's first frame. Waited for when first asked, so that workers can start side by side."""
        if self._hello is None:
            self._hello = self._next()
        return self._hello

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self.log.close()
            self.folder.cleanup()

    def send(self, *frames):
        self.socket.sendall(b"".join(frames))

    def exactly(self, count):
        parts = []
        while count:
            part = self.socket.recv(min(count, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def read(self):
        """Waits for one frame after the first. Raises EOFError when the worker is gone."""
        self.hello
        return self._next()

    def _next(self):
        return Reply(self.exactly(struct.unpack("<I", self.exactly(4))[0]))

    def ask(self, body=b"", content_type="", accept="", meta=None, stream=False, number=7):
        self.send(invoke(number, body, content_type, accept, meta, stream))
        reply = self.read()
        assert reply.id == number, (reply.id, number)
        return reply

    def rest(self):
        """Reads a stream to its end; returns the chunks and the last frame."""
        chunks = []
        while True:
            reply = self.read()
            if reply.kind != CHUNK:
                return chunks, reply
            chunks.append(reply.body)

    def output(self):
        """What was printed so far."""
        self.log.seek(0)
        return self.log.read().decode()
