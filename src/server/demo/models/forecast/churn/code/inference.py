"""Which customers are about to leave.

Takes {"customers": [{"contract": "monthly", "months": 3, "bill": 79.0, "calls": 4}, ...]},
or the same columns as CSV with a header.
"""
import csv
import io
import json
import os

import joblib

NUMBERS = ("months", "bill", "calls")


def model_fn(model_dir):
    return joblib.load(os.path.join(model_dir, "model.joblib"))


def input_fn(body, content_type):
    if content_type.startswith("application/json"):
        return json.loads(body)["customers"]
    if content_type.startswith("text/csv"):
        rows = csv.DictReader(io.StringIO(body))
        return [{name: float(cell) if name in NUMBERS else cell for name, cell in row.items()} for row in rows]
    raise ValueError("send application/json or text/csv, not " + content_type)


def predict_fn(customers, model):
    return model.predict_proba(customers)[:, 1]


def output_fn(chances, accept):
    answers = [{"label": "leaves" if chance >= 0.5 else "stays", "chance": round(float(chance), 4)}
               for chance in chances]
    return json.dumps({"customers": answers}), "application/json"
