"""Dies of a segmentation fault when told to `crash`; else echoes."""
import os
import signal


def model_fn(model_dir):
    return None


def transform_fn(model, body, content_type, accept):
    body = body if isinstance(body, bytes) else body.encode()
    if body == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return body
