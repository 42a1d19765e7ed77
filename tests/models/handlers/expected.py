"""Writes OUTDIR/expected.json: calls of the targets that make.py made, and their answers.

The answers are made here, by calling the handlers' functions in this process, and where a
target has none, the framework itself. Nothing of the server or its worker takes part.

Each entry: target, content_type, accept (null: none given), body_base64,
response_content_type, response_base64, and response_json where the answer is JSON. The
numbers come from this machine's libraries: compare response_json with a tolerance.
"""
import base64
import importlib.util
import io
import json
import os
import sys
import tarfile
import tempfile

import joblib
import numpy
import torch
import xgboost
from sklearn.datasets import load_diabetes, load_digits, load_iris

JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"
LIBSVM, BYTES = "text/libsvm", "application/octet-stream"


def script(path):
    """Imports a target's script under a name of its own."""
    name = "script_{}".format(len(sys.modules))
    spec = importlib.util.spec_from_file_location(name, os.path.join(path, "code", "inference.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def npy(values):
    out = io.BytesIO()
    numpy.save(out, values)
    return out.getvalue()


def csv(rows):
    return "".join(",".join(repr(float(value)) for value in row) + "\n" for row in rows)


def table(values):
    out = io.StringIO()
    numpy.savetxt(out, values, fmt="%s", delimiter=",")
    return out.getvalue()


def encoded(values, accept):
    """An array as the toolkits' default output_fn writes it."""
    kind = accept or JSON
    if kind == JSON:
        return json.dumps(numpy.asarray(values).tolist()), kind
    return (table(values), kind) if kind == CSV else (npy(values), kind)


def entry(target, content_type, accept, body, answer, kind):
    body, answer = (part.encode() if isinstance(part, str) else part for part in (body, answer))
    made = {
        "target": target, "content_type": content_type, "accept": accept,
        "body_base64": base64.b64encode(body).decode(), "response_content_type": kind,
        "response_base64": base64.b64encode(answer).decode(),
    }
    if kind == JSON:
        made["response_json"] = json.loads(answer)
    return made


def arrays(target, rows, predict):
    """Calls of a target that takes and gives arrays; `predict` takes f32, or f64 for NPY."""
    single = numpy.asarray(rows, dtype=numpy.float32)
    for content_type, accept, body, data in (
        (JSON, None, json.dumps(rows.tolist()), single),
        (JSON, JSON, json.dumps(rows[:1].tolist()), single[:1]),
        (CSV, None, csv(rows), single),
        (CSV, CSV, csv(rows), single),
        (NPY, JSON, npy(single), single),
        (NPY, NPY, npy(single), single),
        (JSON, "text/csv, application/json", json.dumps(rows[1:].tolist()), single[1:]),
    ):
        first = accept.split(",")[0] if accept else None
        yield entry(target, content_type, accept, body, *encoded(predict(data), first))


def iris(out):
    path = os.path.join(out, "iris-sklearn")
    model = script(path).model_fn(path)
    return arrays("iris-sklearn", load_iris().data[[0, 60, 110, 149]], model.predict)


def diabetes(out):
    model = joblib.load(os.path.join(out, "plain-sklearn", "model.joblib"))
    return arrays("plain-sklearn", load_diabetes().data[:5], model.predict)


def network(out):
    model = torch.jit.load(os.path.join(out, "plain-pytorch", "model.pth")).eval()
    rows = numpy.array([[0.1, 0.2, 0.3, 0.4], [1.5, -1.25, 0.5, 2.0], [0.5, 0.5, 0.5, 0.75]])

    def predict(data):
        with torch.no_grad():
            return numpy.array(model(torch.from_numpy(data)).numpy().tolist())
    return arrays("plain-pytorch", rows, predict)


def libsvm(rows):
    lines = [" ".join("{}:{!r}".format(n, float(value)) for n, value in enumerate(row)) for row in rows]
    return "\n".join("0 " + line for line in lines)


def prices(out):
    model = xgboost.Booster(model_file=os.path.join(out, "prices-xgboost", "xgboost-model"))
    rows = numpy.random.default_rng(1).uniform(0, 10, (4, 6)).round(3)
    for content_type, accept, body, count in (
        (CSV, None, csv(rows), 4), (CSV, CSV, csv(rows[:1]), 1), (CSV, JSON, csv(rows), 4),
        (LIBSVM, JSON, libsvm(rows), 4), (LIBSVM, None, libsvm(rows[:2]), 2), (CSV, "*/*", csv(rows[:3]).strip(), 3),
    ):
        values = model.predict(xgboost.DMatrix(rows[:count])).tolist()
        answer = (json.dumps(values), JSON) if accept == JSON else (",".join(map(str, values)), CSV)
        yield entry("prices-xgboost", content_type, accept, body, *answer)


def churn(out):
    with unpacked(out, "churn-xgboost.tar.gz") as path:
        model = script(path).model_fn(path)
    rows = numpy.random.default_rng(2).normal(size=(4, 8)).round(3)
    for content_type, accept, body in (
        (CSV, None, csv(rows)), (CSV, JSON, csv(rows)), (CSV, CSV, csv(rows)), (CSV, NPY, csv(rows)),
        ("text/x-libsvm", JSON, libsvm(rows)), ("text/csv; charset=utf-8", None, csv(rows)),
    ):
        values = model.predict(xgboost.DMatrix(rows), validate_features=False)
        yield entry("churn-xgboost.tar.gz", content_type, accept, body, *encoded(values, accept))


def called(target, module, model, requests):
    """Calls of a target that has all three functions, or transform_fn, itself."""
    for content_type, accept, body in requests:
        text = body.decode() if content_type in (JSON, CSV) else body
        if hasattr(module, "transform_fn"):
            answer = module.transform_fn(model, text, content_type, accept or JSON)
        else:
            data = module.predict_fn(module.input_fn(text, content_type), model)
            answer = module.output_fn(data, accept or JSON)
        answer, kind = answer if isinstance(answer, tuple) else (answer, accept or JSON)
        if not isinstance(answer, (str, bytes)):
            answer = "".join(part if isinstance(part, str) else json.dumps(part) + "\n" for part in answer)
        yield entry(target, content_type, accept, body, answer, kind)


def digits(out):
    with unpacked(out, "digits-pytorch.tar.gz") as path:
        module = script(path)
        model = module.model_fn(path)
        pixels = load_digits().data[[1, 50, 700, 1500]]
        requests = [(JSON, None, json.dumps({"pixels": pixels.tolist()}).encode()), (NPY, JSON, npy(pixels)),
                    (NPY, CSV, npy(pixels[:2])), (BYTES, None, pixels.astype(numpy.uint8).tobytes()),
                    (BYTES, CSV, pixels[:1].astype(numpy.uint8).tobytes())]
        yield from called("digits-pytorch.tar.gz", module, model, requests)


def pictures(out):
    path = os.path.join(out, "pictures-diffusion")
    module = script(path)
    model = module.model_fn(path)
    for asked in ({"inputs": "a red boat"}, {"inputs": "a red boat", "num_images_per_prompt": 1},
                  {"inputs": "a red boat", "num_images_per_prompt": 1, "num_inference_steps": 25},
                  {"inputs": "caf\u00e9 at night", "guidance_scale": 3.0, "num_images_per_prompt": 2},
                  {"inputs": "", "num_images_per_prompt": 0}):
        body = json.dumps(asked)
        answer = json.dumps(module.predict_fn(asked, model), ensure_ascii=False, separators=(",", ":"))
        yield entry("pictures-diffusion", JSON, None, body, answer, JSON)


def words(out):
    module = script(os.path.join(out, "words-stream"))
    asked = [{}, {"words": ["a", "b"], "times": 50}, {"as": "json"}, {"words": []},
             {"words": ["\u00e9", "\u4f60\u597d"]}, {"as": "json", "words": ["x"], "times": 3}]
    return called("words-stream", module, None, [(JSON, None, json.dumps(one).encode()) for one in asked])


def echo(out):
    module = script(os.path.join(out, "echo"))
    requests = [(BYTES, BYTES, bytes(range(256))), (BYTES, None, b"1"), (JSON, JSON, b'{"a": 1}'), (CSV, CSV, b"1,2\n"),
                ("image/png", "image/png", b"\x89PNG\r\n\x1a\n")]
    return called("echo", module, None, requests)


def unpacked(out, name):
    """A folder, for a `with`, that holds an archive's files."""
    path = tempfile.TemporaryDirectory()
    with tarfile.open(os.path.join(out, name)) as archive:
        archive.extractall(path.name)
    return path


def main():
    out = sys.argv[1]
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    targets = (iris, diabetes, prices, churn, digits, network, pictures, words, echo)
    entries = [one for target in targets for one in target(out)]
    with open(os.path.join(out, "expected.json"), "w") as file:
        json.dump(entries, file, indent=1)
    print(len(entries), "calls in", os.path.join(out, "expected.json"))


if __name__ == "__main__":
    main()
