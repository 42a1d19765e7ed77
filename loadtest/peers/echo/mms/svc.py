"""Echo for multi-model-server: a service module whose `handle` answers a batch."""


def handle(data, context):
    """Returns each request's body; `data` is None where the model is only being initialised."""
    return None if data is None else [request["body"] for request in data]
