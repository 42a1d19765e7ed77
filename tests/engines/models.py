"""A container of a few lines that holds many models, for tests: SageMaker's multi-model contract.

Written from its documentation. A model is a folder with a file `weights`; asked, it answers with what
it is: {"weights": ..., "asked": the body, "headers": {...}, "process": ...}.
"""

import argparse
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

options = argparse.ArgumentParser()
options.add_argument("--port", type=int, required=True)
options.add_argument("--most", type=int, default=100, help="models that it has memory for")
options.add_argument("--holds", action="append", default=[], help="a model of somebody else's")
options.add_argument("--root", default="", help="stands before the paths that it is told")
options.add_argument("--journal", help="a file that is told what happens")
options = options.parse_args()

lock = Lock()
models = {name: "" for name in options.holds}


def journal(line):
    if options.journal:
        with open(options.journal, "a") as file:
            file.write(f"{line}\n")


class Container(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, said):
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("x-amzn-sagemaker-custom-attributes", "seen")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def told(self, status, message):
        self.answer(status, {"code": status, "type": "Told", "message": message})

    def do_GET(self):
        if self.path == "/ping":
            return self.answer(200, {"status": "Healthy"})
        if self.path.split("?")[0] == "/models":
            with lock:
                held = [{"modelName": name, "modelUrl": url} for name, url in models.items()]
            return self.answer(200, {"models": held})
        name = self.path.removeprefix("/models/")
        if name not in models:
            return self.told(404, f"Model not found: {name}")
        self.answer(200, {"modelName": name, "modelUrl": models[name]})

    def do_DELETE(self):
        name = self.path.removeprefix("/models/")
        with lock:
            if models.pop(name, None) is None:
                return self.told(404, f"Model not found: {name}")
        journal(f"unload {name}")
        self.answer(200, {"status": f'Model "{name}" unregistered'})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/models":
            return self.load(json.loads(body))
        name = self.path.removeprefix("/models/").removesuffix("/invoke")
        if name not in models:
            return self.told(404, f"Model not found: {name}")
        if body == b"die":
            os._exit(9)
        with lock:
            if body == b"grow" and len(models) > 1:
                return self.told(507, "CUDA out of memory")
        if body.startswith(b"status "):
            return self.told(int(body.split()[1]), "as you wish")
        with open(os.path.join(options.root + models[name], "weights")) as file:
            weights = file.read()
        headers = {name.lower(): value for name, value in self.headers.items()}
        said = {"weights": weights, "asked": body.decode(), "name": name}
        self.answer(200, {**said, "headers": headers, "process": os.getpid()})

    def load(self, asked):
        name, url = asked["model_name"], asked["url"]
        with lock:
            if name in models:
                return self.told(409, f"Model {name} is already registered.")
            folder = options.root + url
            if not os.path.exists(os.path.join(folder, "weights")):
                return self.told(404, f"Model not found in model store: {url}")
            if len(models) >= options.most:
                journal("full")
                return self.told(507, "no memory for it")
            models[name] = url
        journal(f"load {name}")
        self.answer(200, {"status": f'Model "{name}" registered'})


journal("start")
print("listening", file=sys.stderr, flush=True)
server = ThreadingHTTPServer(("127.0.0.1", options.port), Container)
server.daemon_threads = True
server.serve_forever()
