"""Answers with 100 MB when told to be `huge`; else echoes."""


def model_fn(model_dir):
    return None


def transform_fn(model, body, content_type, accept):
    body = body if isinstance(body, bytes) else body.encode()
    if body == b"huge":
        return bytes(100 << 20)
    return body
