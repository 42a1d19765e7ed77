"""Takes SLOW_IMPORT seconds (60 when not set) to be imported; then echoes."""
import os
import time

time.sleep(float(os.environ.get("SLOW_IMPORT", "60")))


def model_fn(model_dir):
    return None


def transform_fn(model, body, content_type, accept):
    body = body if isinstance(body, bytes) else body.encode()
    return body
