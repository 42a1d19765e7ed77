"""Handwritten digits: 8 by 8 pixels of 0 to 16, as JSON, as bytes or as an array."""
import io
import json
import os

import numpy
import torch


def model_fn(model_dir):
    return torch.jit.load(os.path.join(model_dir, "model.pth"), map_location="cpu").eval()


def input_fn(body, content_type):
    if content_type == "application/json":
        pixels = json.loads(body)["pixels"]
    elif content_type == "application/x-npy":
        pixels = numpy.load(io.BytesIO(body))
    elif content_type == "application/octet-stream":
        pixels = numpy.frombuffer(body, dtype=numpy.uint8)
    else:
        raise ValueError("unsupported content type {}".format(content_type))
    return torch.as_tensor(numpy.asarray(pixels, dtype=numpy.float32)).reshape(-1, 64)


def predict_fn(data, model):
    with torch.no_grad():
        return torch.softmax(model(data), dim=1)


def output_fn(prediction, accept):
    best = prediction.argmax(dim=1).tolist()
    if accept == "text/csv":
        return "".join("{}\n".format(digit) for digit in best), "text/csv"
    chances = prediction.max(dim=1).values.tolist()
    answer = [{"digit": digit, "probability": round(chance, 4)} for digit, chance in zip(best, chances)]
    return json.dumps({"predictions": answer}), "application/json"
