"""A store that speaks enough of S3 for the server under test, in this process, with faults.

One bucket in memory, on loopback. Signatures are not looked at. Objects are replaced at once, tags
are MD5, dates have seconds, a HEAD tells the SHA-256 of the whole object.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import random
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

FAULTS = ["busy", "error", "stall", "cut", "slow", "flip", "denied", "flaky", "gone"]
PIECE = 32 * 1024


class Bucket:
    """The objects, and what is wrong with their store at the moment."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.objects: dict[str, tuple[bytes, str, str, float]] = {}
        self.fault: str | None = None
        self.healed = threading.Event()
        self.served: dict[str, int] = {}
        self.rng = random.Random(7)
        handler = type("Bound", (Answering,), {"bucket": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.address = f"127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def put(self, key: str, body: bytes) -> None:
        entry = (body, hashlib.md5(body).hexdigest(),
                 base64.b64encode(hashlib.sha256(body).digest()).decode(), time.time())
        with self.lock:
            self.objects[key] = entry

    def delete(self, key: str) -> None:
        with self.lock:
            self.objects.pop(key, None)

    def set(self, fault: str | None) -> None:
        self.fault = fault
        if fault is None:
            # Whoever was stalled is let go.
            self.healed.set()
        else:
            self.healed.clear()

    def close(self) -> None:
        self.set(None)
        self.http.shutdown()
        self.http.server_close()


class Answering(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    bucket: Bucket
    disable_nagle_algorithm = True

    def log_message(self, *_) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, with_body: bool) -> None:
        bucket = self.bucket
        time.sleep(bucket.rng.uniform(0.001, 0.008))
        fault = bucket.fault
        if fault == "flaky" and bucket.rng.random() < 0.4:
            fault = bucket.rng.choice(["busy", "error", "gone", "cut"])
        bucket.served[fault or "well"] = bucket.served.get(fault or "well", 0) + 1
        if fault == "gone":
            self.close_connection = True
            return
        if fault == "stall":
            # In silence, until the fault is over; then the connection ends.
            bucket.healed.wait(30)
            self.close_connection = True
            return
        refused = {"busy": (503, "SlowDown"), "error": (500, "InternalError"),
                   "denied": (403, "AccessDenied")}
        if fault in refused:
            self.refuse(*refused[fault], with_body)
            return
        url = urllib.parse.urlsplit(self.path)
        name, _, key = urllib.parse.unquote(url.path).lstrip("/").partition("/")
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        if name != bucket.name:
            self.refuse(404, "NoSuchBucket", with_body)
        elif not key and "list-type" in query:
            self.list(query)
        else:
            self.object(key, with_body, fault)

    def refuse(self, status: int, code: str, with_body: bool) -> None:
        text = f"<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>so be it</Message></Error>"
        self.send(status, {"Content-Type": "application/xml"}, text.encode(), with_body)

    def send(self, status: int, headers: dict, body: bytes, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def list(self, query: dict) -> None:
        prefix, limit = query.get("prefix", ""), int(query.get("max-keys", "1000"))
        behind = query.get("continuation-token", "")
        with self.bucket.lock:
            found = sorted((key, entry) for key, entry in self.bucket.objects.items()
                           if key.startswith(prefix) and key > behind)
        page, more = found[:limit], len(found) > limit
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{stamp(at)}</LastModified>"
            f"<ETag>&quot;{tag}&quot;</ETag><Size>{len(body)}</Size></Contents>"
            for key, (body, tag, _, at) in page)
        token = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if more else ""
        text = (f"<?xml version=\"1.0\"?><ListBucketResult><Name>{self.bucket.name}</Name>"
                f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
                f"{token}{rows}</ListBucketResult>")
        self.send(200, {"Content-Type": "application/xml"}, text.encode())

    def object(self, key: str, with_body: bool, fault: str | None) -> None:
        with self.bucket.lock:
            entry = self.bucket.objects.get(key)
        if entry is None:
            self.refuse(404, "NoSuchKey", with_body)
            return
        body, tag, checksum, at = entry
        if self.headers.get("If-Match", tag).strip('"') != tag:
            self.refuse(412, "PreconditionFailed", with_body)
            return
        headers = {"ETag": f'"{tag}"', "Last-Modified": email.utils.formatdate(int(at), usegmt=True),
                   "Accept-Ranges": "bytes"}
        if not with_body:
            headers |= {"x-amz-checksum-sha256": checksum, "x-amz-checksum-type": "FULL_OBJECT"}
        status, wanted = 200, self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, last = wanted[6:].split("-")
            first, last = int(first), min(int(last or len(body)), len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            status, body = 206, body[first:last + 1]
        if with_body and fault == "flip" and len(body) > 64 * 1024:
            # What the wire did to it; the checksum is that of the object.
            at = self.bucket.rng.randrange(len(body))
            body = body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1:]
        if not with_body or fault not in ("cut", "slow"):
            self.send(status, headers, body, with_body)
            return
        self.send(status, headers | {"Content-Length": str(len(body))}, body, False)
        end = self.bucket.rng.randrange(len(body) + 1) if fault == "cut" else len(body)
        for start in range(0, end, PIECE):
            self.wfile.write(body[start:min(start + PIECE, end)])
            if fault == "slow" and self.bucket.fault == "slow":
                time.sleep(0.1)
        if fault == "cut":
            self.close_connection = True


def stamp(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(at))
