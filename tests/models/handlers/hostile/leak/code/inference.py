"""Takes memory without end when told to `leak`; else echoes."""


def model_fn(model_dir):
    return None


def transform_fn(model, body, content_type, accept):
    body = body if isinstance(body, bytes) else body.encode()
    if body == b"leak":
        kept = []
        while True:
            kept.append(b"\1" * (16 << 20))  # written to, so that it is resident
    return body
