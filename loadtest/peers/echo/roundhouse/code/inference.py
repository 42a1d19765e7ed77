"""Echo for Roundhouse, in the SageMaker toolkits' form."""


def model_fn(model_dir):
    """There is nothing to load."""
    return None


def transform_fn(model, body, content_type, accept):
    """Returns the request's body."""
    return body
