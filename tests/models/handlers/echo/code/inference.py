"""Answers with what it was sent, as the type that was asked for."""


def model_fn(model_dir):
    return None


def transform_fn(model, body, content_type, accept):
    return body if isinstance(body, bytes) else body.encode(), accept
