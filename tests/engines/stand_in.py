"""An engine of a few lines for tests: OpenAI's routes, and vLLM's and SGLang's for sleep and adapters.

Written from their documentation. It answers with what it is, so that a test sees which model, which
adapter and which process answered: "<model's text>|<model asked for>|<prompt>".
"""

import argparse
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

options = argparse.ArgumentParser()
options.add_argument("--port", type=int, required=True)
options.add_argument("--model", required=True, help="a file, or a folder with a file `weights`")
options.add_argument("--served-model-name", default="")
options.add_argument("--mib", type=int, default=0, help="memory that it holds beside itself")
options.add_argument("--max-loras", type=int, default=0)
options.add_argument("--start", default="well", choices=["well", "never", "dies"])
options.add_argument("--journal", help="a file that is told what happens")
options = options.parse_args()

path = options.model
with open(os.path.join(path, "weights") if os.path.isdir(path) else path) as file:
    WEIGHTS = file.read().strip()
KEPT = bytearray(os.urandom(1 << 20) * options.mib)
lock = threading.Lock()
adapters = {}
state = {"sleeps": 0, "weights": True, "cache": True}


def journal(line):
    if options.journal:
        with open(options.journal, "a") as file:
            file.write(f"{WEIGHTS} {line}\n")


class Refused(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, content_type="application/json"):
        body = body.encode()
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def told(self, status, message):
        self.answer(status, json.dumps({"error": {"message": message, "code": status}}))

    def do_GET(self):
        if self.path == "/health":
            status = 503 if options.start == "never" else 200
            return self.answer(status, "")
        if self.path == "/is_sleeping":
            return self.answer(200, json.dumps({"is_sleeping": state["sleeps"] > 0}))
        return self.told(404, "Not Found")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        where = urlsplit(self.path)
        try:
            self.route(where.path, parse_qs(where.query), json.loads(body or b"{}"))
        except Refused as refused:
            self.told(refused.status, str(refused))

    def route(self, path, query, body):
        if path in ("/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache"):
            with lock:
                self.doze(path, query, body)
            return self.answer(200, "")
        if path in ("/v1/load_lora_adapter", "/load_lora_adapter"):
            with lock:
                return self.load(body, path)
        if path in ("/v1/unload_lora_adapter", "/unload_lora_adapter"):
            with lock:
                if adapters.pop(body["lora_name"], None) is None:
                    raise Refused(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
            journal(f"unload {body['lora_name']}")
            return self.answer(200, "Success: LoRA adapter removed successfully.")
        if state["sleeps"] or not state["weights"] or not state["cache"]:
            raise Refused(500, f"it is not awake: {state}")
        if path == "/v1/embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [1.0, 2.0]}]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            said = {"object": "list", "model": body["model"], "data": data, "usage": usage}
            return self.answer(200, json.dumps(said))
        if path == "/v1/chat/completions":
            return self.generate(body, body["messages"][-1]["content"], True)
        if path == "/v1/completions":
            return self.generate(body, body["prompt"], False)
        if path == "/v1/responses":
            return self.respond(body)
        if path == "/tokenize":
            said = {"count": len(body["prompt"]), "max_model_len": 100,
                    "tokens": [ord(each) for each in body["prompt"]], "token_strs": None}
            return self.answer(200, json.dumps({**said, "model": body["model"]}))
        raise Refused(404, "Not Found")

    def doze(self, path, query, body):
        if path == "/sleep":
            level = int(query.get("level", ["1"])[0])
            state.update(sleeps=level, weights=level == 1)
            state["cache"] = level == 1
            journal(f"sleep {level}")
        elif path == "/wake_up":
            tags = query.get("tags", ["weights", "kv_cache"])
            if "kv_cache" in tags:
                state["sleeps"] = 0
            journal(f"wake {' '.join(tags)}")
        elif path == "/collective_rpc" and body.get("method") == "reload_weights":
            state["weights"] = True
        elif path == "/reset_prefix_cache":
            state["cache"] = True

    def load(self, body, path):
        name, folder = body["lora_name"], body["lora_path"]
        if name in adapters:
            raise Refused(400, f"The lora adapter '{name}' has already been loaded.")
        try:
            with open(os.path.join(folder, "adapter_config.json")) as file:
                config = json.load(file)
        except OSError:
            raise Refused(404, f"Loading lora {name} failed: no adapter found at {folder}") from None
        if config["r"] > 16:
            raise Refused(400, f"LoRA rank {config['r']} is greater than max_lora_rank 16.")
        if len(adapters) >= options.max_loras:
            raise Refused(500, f"{len(adapters)} adapters are loaded, the most is {options.max_loras}")
        adapters[name] = config
        journal(f"load {name}")
        said = {"success": True, "loaded_adapters": {name: folder}}
        if path.startswith("/v1"):
            return self.answer(200, f"Success: LoRA adapter '{name}' added successfully.")
        return self.answer(200, json.dumps(said))

    def refuse(self, model, prompt):
        known = [options.served_model_name, *adapters]
        known += [f"{options.served_model_name}:{name}" for name in adapters]
        if model not in known:
            raise Refused(404, f"The model `{model}` does not exist.")
        if prompt == "die":
            os._exit(9)
        if prompt.startswith("status "):
            raise Refused(int(prompt.split()[1]), "as you wish")

    def begin_stream(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def generate(self, body, prompt, is_chat):
        model = body["model"]
        self.refuse(model, prompt)
        if prompt == "salt":
            prompt = str(body.get("cache_salt"))
        text = f"{WEIGHTS}|{model}|{prompt}|{os.getpid()}"
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        said = {"id": "x", "created": int(time.time()), "model": model, "usage": usage}
        said["object"] = "chat.completion" if is_chat else "text_completion"
        if not body.get("stream"):
            part = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
            said["choices"] = [{"index": 0, "finish_reason": "stop", **part}]
            return self.answer(200, json.dumps(said))
        self.begin_stream()
        said["object"] = "chat.completion.chunk" if is_chat else "text_completion"
        said.pop("usage")
        for at, piece in enumerate(text.split("|")):
            piece = piece if at == 0 else "|" + piece
            part = {"delta": {"content": piece}} if is_chat else {"text": piece}
            self.event({**said, "choices": [{"index": 0, "finish_reason": None, **part}]})
            if prompt == "die later" and at == 1:
                os._exit(9)
        part = {"delta": {}} if is_chat else {"text": ""}
        self.event({**said, "choices": [{"index": 0, "finish_reason": "stop", **part}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            self.event({**said, "choices": [], "usage": usage})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def respond(self, body):
        """The Responses API: an item of text, whole or as events with names."""
        prompt = body["input"]
        self.refuse(body["model"], prompt)
        text = f"{WEIGHTS}|{body['model']}|{prompt}|{os.getpid()}"
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
        usage |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        said = {"id": "resp_1", "object": "response", "created_at": int(time.time()), "model": body["model"]}
        said |= {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
        done = {**said, "status": "completed", "output": [item], "usage": usage}
        if not body.get("stream"):
            return self.answer(200, json.dumps(done))
        self.begin_stream()
        self.named({"type": "response.created", "response": {**said, "status": "in_progress", "output": []}}, 0)
        for at, piece in enumerate(text.split("|")):
            piece = piece if at == 0 else "|" + piece
            where = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
            self.named({"type": "response.output_text.delta", "delta": piece, **where}, at + 1)
            if prompt == "die later" and at == 1:
                os._exit(9)
        self.named({"type": "response.completed", "response": done}, 5)
        self.chunk(b"")

    def named(self, event, number):
        event["sequence_number"] = number
        data = json.dumps(event)
        self.chunk(f"event: {event['type']}\ndata: {data}\n\n".encode())

    def event(self, said):
        self.chunk(b"data: " + json.dumps(said).encode() + b"\n\n")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


journal(f"start {os.getpid()}")
print("reading weights", flush=True)
if options.start == "dies":
    print("CUDA out of memory: as the test wants it", file=sys.stderr, flush=True)
    sys.exit(7)
server = ThreadingHTTPServer(("127.0.0.1", options.port), Engine)
server.daemon_threads = True
server.serve_forever()
