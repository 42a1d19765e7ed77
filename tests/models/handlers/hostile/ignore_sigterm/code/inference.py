"""Ignores the signals that ask it to end; hangs when told to `hang`, else echoes."""
import signal
import time


def model_fn(model_dir):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    return None


def transform_fn(model, body, content_type, accept):
    body = body if isinstance(body, bytes) else body.encode()
    while body == b"hang":
        time.sleep(3600)
    return body
