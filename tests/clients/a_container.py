"""A container of the tests: several in one process, told apart by the first segment of the path.

usage: a_container.py [PORT_FILE [CERTIFICATE KEY]]

Serves on SAGEMAKER_BIND_TO_PORT, else on a port of its own choice, which it writes into PORT_FILE; by TLS
where it is given a certificate.
"""

import json
import os
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = "x-amzn-sagemaker-custom-attributes"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "theirs"

    def log_message(self, *_):
        pass

    def split(self):
        path = self.path.split("/")
        return ("", path[1]) if len(path) == 2 else (path[1], path[2])

    def answer(self, status, media, body, **headers):
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, "text/plain", b"")

    def do_POST(self):
        name, _ = self.split()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        getattr(self, f"do_{name.replace('-', '_')}", self.echo)(name, body)

    def echo(self, name, body):
        said = {
            "name": name,
            "path": self.path,
            "process": os.getpid(),
            "token": os.environ.get("TOKEN"),
            "secret": os.environ.get("AWS_SECRET_ACCESS_KEY"),
            "body": body.decode(),
            "headers": {key.lower(): value for key, value in self.headers.items()},
        }
        self.answer(200, "application/json", json.dumps(said).encode(), X_Amzn_SageMaker_Custom_Attributes=f"from {name}")

    # A pipeline: text of numbers, a list, its doubles, their sum.
    def do_split(self, name, body):
        assert self.headers["Content-Type"] == "text/csv", self.headers
        numbers = [int(number) for number in body.decode().split(",")]
        self.answer(200, "application/x-numbers", json.dumps(numbers).encode())

    def do_double(self, name, body):
        if self.headers["Content-Type"] != "application/x-numbers":
            return self.answer(415, "text/plain", b"numbers, please")
        numbers = [2 * number for number in json.loads(body)]
        if sum(numbers) > 1000:
            return self.answer(422, "text/plain", b"too much for me")
        self.answer(200, "application/x-doubles", json.dumps(numbers).encode())

    def do_sum(self, name, body):
        assert self.headers["Content-Type"] == "application/x-doubles", self.headers
        self.answer(200, "text/plain", str(sum(json.loads(body))).encode())

    # Streams: the second piece goes when the client has told that it has the first.
    def do_stream(self, name, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        said = json.loads(body)
        turn = TURNS.setdefault(said["turn"], threading.Event())
        for at in range(said["pieces"]):
            if at:
                assert turn.wait(60)
                turn.clear()
            piece = f"data: {at}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        if said.get("breaks"):
            turn.wait(60)
            self.connection.shutdown(2)
            return
        self.wfile.write(b"0\r\n\r\n")

    def do_next(self, name, body):
        TURNS.setdefault(json.loads(body)["turn"], threading.Event()).set()
        self.answer(200, "text/plain", b"")

    # A language model, and what it says that an answer took.
    def do_llm(self, name, body):
        asked = json.loads(body)
        usage = {"prompt_tokens": asked["prompt"], "completion_tokens": asked["completion"]}
        if not asked.get("stream"):
            return self.answer(200, "application/json", json.dumps({"usage": usage}).encode())
        events = [{"choices": [{"delta": {"content": "x"}}]}, {"choices": [], "usage": usage}]
        told = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self.answer(200, "text/event-stream", told.encode())

    # Faults.
    def do_oom(self, name, body):
        self.answer(200, "application/json", b'{"error": "out of memory"}')

    def do_lies(self, name, body):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"less")
        self.close_connection = True

    def do_stalls(self, name, body):
        self.connection.recv(1)

    def do_dies(self, name, body):
        os._exit(7)


TURNS = {}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    port = int(os.environ.get("SAGEMAKER_BIND_TO_PORT", 0))
    server = Server(("127.0.0.1", port), Handler)
    if len(sys.argv) > 3:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[2], sys.argv[3])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    if len(sys.argv) > 1:
        with open(sys.argv[1] + ".new", "w") as file:
            file.write(str(server.server_address[1]))
        os.rename(sys.argv[1] + ".new", sys.argv[1])
    server.serve_forever()


if __name__ == "__main__":
    main()
