"""Prints 200 MB when told to `flood`, in lines, then without any line break; else echoes."""
import sys


def model_fn(model_dir):
    return None


def transform_fn(model, body, content_type, accept):
    body = body if isinstance(body, bytes) else body.encode()
    if body == b"flood":
        line = "x" * 999
        for _ in range(100000):
            print(line)
        for _ in range(100):
            sys.stdout.write("y" * 1000000)
        sys.stdout.flush()
    return body
