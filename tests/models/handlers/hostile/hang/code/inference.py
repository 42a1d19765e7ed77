"""Never answers when told to `hang`; else echoes."""
import time


def model_fn(model_dir):
    return None


def transform_fn(model, body, content_type, accept):
    body = body if isinstance(body, bytes) else body.encode()
    if body == b"hang":
        time.sleep(3600)
    return body
