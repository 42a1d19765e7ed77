"""What the Hugging Face serving container does where a script defines nothing.

Bodies stay what JSON says, texts of a CSV go under "inputs", pictures and sounds, too.
"""
import base64
import csv
import datetime
import io
import json

from roundhouse_defaults import CSV, JSON, NPY, Plain
from roundhouse_errors import Refused

PICTURES = tuple("image/" + kind for kind in ("jpeg", "png", "tiff", "bmp", "gif", "webp", "x-image"))
SOUNDS = tuple("audio/" + kind for kind in ("x-flac", "mpeg", "wave", "ogg", "x-audio", "flac", "x-wav"))


class Huggingface(Plain):
    """Pipelines of transformers and diffusers, or what acts like one."""

    reads = dict({JSON: "json", CSV: "csv", NPY: "npy"},
                 **dict({kind: "picture" for kind in PICTURES}, **{kind: "sound" for kind in SOUNDS}))
    writes = dict({JSON: "json", CSV: "csv", NPY: "npy"}, **{kind: "picture" for kind in PICTURES})

    def read_json(self, body):
        return json.loads(body)

    def read_csv(self, body):
        """Takes a header line that names `inputs`, or question and context."""
        lines = body.splitlines()
        if not lines or not any(name in lines[0].lower() for name in ("inputs", "question", "context")):
            raise ValueError("its first line must name the columns: inputs, or question and context")
        rows = list(csv.DictReader(io.StringIO(body)))
        if rows and "inputs" in rows[0]:
            return {"inputs": [row["inputs"] for row in rows]}
        return {"inputs": rows}

    def read_picture(self, body):
        try:
            from PIL import Image
        except ImportError:
            raise Refused(415, "reading pictures needs Pillow, which this handler does not have") from None
        return {"inputs": Image.open(io.BytesIO(body)).convert("RGB")}

    def read_sound(self, body):
        return {"inputs": bytes(body)}

    def predict_fn(self, data, model):
        """Calls the model with `inputs`, and with `parameters` by their names."""
        if not isinstance(data, dict):
            return model(data)
        inputs, parameters = data.pop("inputs", data), data.pop("parameters", None)
        return model(inputs, **(parameters or {}))

    def output_fn(self, prediction, route):
        if hasattr(prediction, "save") and route.accepts[0] in PICTURES:
            return picture(prediction, route.accepts[0]), route.accepts[0]
        return super().output_fn(prediction, route)

    def write_json(self, prediction):
        return json_compact(prediction)

    def write_csv(self, prediction):
        """Writes a list of objects, their keys as the header line."""
        rows = prediction if isinstance(prediction, list) else [prediction]
        if not rows or not isinstance(rows[0], dict):
            return super().write_csv(prediction)
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def write_picture(self, prediction):
        raise Refused(406, "a prediction of type {} cannot be written as a picture".format(type(prediction).__name__))


def json_compact(value):
    """Returns JSON without blanks and without NaN, pictures in it as base64 of PNG."""
    return json.dumps(value, default=plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def plain(value):
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, datetime.datetime):
        return str(value)
    if hasattr(value, "save") and hasattr(value, "mode"):
        return base64.b64encode(picture(value, "image/png")).decode("ascii")
    raise TypeError("{} cannot be written as JSON".format(type(value).__name__))


def picture(image, kind):
    out = io.BytesIO()
    image.save(out, format="PNG" if kind == "image/x-image" else kind.partition("/")[2].upper())
    return out.getvalue()
