"""A store over a folder that speaks enough of S3 for cold loads, at a pace.

    python loadtest/coldload/store.py FOLDER BUCKET

Prints its address. A line on its standard input is the pace from then on, in bytes a second of
all connections together, 0 being as fast as it goes, and after it, if wanted, the seconds by which
each answer is late. Bodies are sent from the page cache by the kernel.
"""

import email.utils
import os
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

FOLDER, BUCKET = sys.argv[1:3]
PIECE = 256 * 1024


class Pace:
    """Lets so many bytes go a second, in all, with a tenth of a second of slack."""

    def __init__(self):
        self.lock, self.rate, self.free_at = threading.Lock(), 0, 0.0
        self.late = 0.0

    def set(self, rate, late=0):
        with self.lock:
            self.rate, self.free_at = int(rate), time.monotonic()
            self.late = float(late)

    def wait(self, count):
        with self.lock:
            if not self.rate:
                return
            now = time.monotonic()
            self.free_at = max(self.free_at, now - 0.02) + count / self.rate
            pause = self.free_at - now
        if pause > 0:
            time.sleep(pause)


PACE = Pace()


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except OSError:
            pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_body):
        time.sleep(PACE.late)
        url = urllib.parse.urlsplit(self.path)
        bucket, _, key = urllib.parse.unquote(url.path).lstrip("/").partition("/")
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        if bucket == BUCKET and not key and "list-type" in query:
            return self.list(query)
        path = os.path.join(FOLDER, key)
        if bucket != BUCKET or not os.path.isfile(path):
            text = b"<Error><Code>NoSuchKey</Code></Error>"
            return self.text(404, text, with_body)
        meta = os.stat(path)
        tag = f'"{meta.st_mtime_ns:x}-{meta.st_size:x}"'
        status, first, last = 200, 0, meta.st_size - 1
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            begin, end = wanted[6:].split("-")
            status, first, last = 206, int(begin), min(int(end or last), last)
        self.send_response(status)
        self.send_header("ETag", tag)
        self.send_header("Last-Modified", email.utils.formatdate(meta.st_mtime, usegmt=True))
        self.send_header("Content-Length", str(last - first + 1))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{meta.st_size}")
        self.end_headers()
        if not with_body:
            return None
        self.wfile.flush()
        with open(path, "rb") as body:
            at = first
            while at <= last:
                count = min(PIECE, last + 1 - at)
                PACE.wait(count)
                while count:
                    sent = os.sendfile(self.connection.fileno(), body.fileno(), at, count)
                    at, count = at + sent, count - sent
        return None

    def text(self, status, text, with_body=True):
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if with_body:
            self.wfile.write(text)

    def list(self, query):
        prefix, rows, count = query.get("prefix", ""), "", 0
        for where, _, names in sorted(os.walk(FOLDER)):
            for name in sorted(names):
                path = os.path.join(where, name)
                key = os.path.relpath(path, FOLDER)
                if not key.startswith(prefix):
                    continue
                meta = os.stat(path)
                stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(meta.st_mtime))
                tag = f"{meta.st_mtime_ns:x}-{meta.st_size:x}"
                rows += (f"<Contents><Key>{escape(key)}</Key><LastModified>{stamp}</LastModified>"
                         f"<ETag>&quot;{tag}&quot;</ETag><Size>{meta.st_size}</Size></Contents>")
                count += 1
        self.text(200, (f"<?xml version=\"1.0\"?><ListBucketResult><Name>{BUCKET}</Name>"
                        f"<KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>"
                        f"{rows}</ListBucketResult>").encode())


server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"http://127.0.0.1:{server.server_port}", flush=True)
for line in sys.stdin:
    PACE.set(*line.split())
    print("paced", flush=True)
