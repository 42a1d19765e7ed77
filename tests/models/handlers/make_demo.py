"""Trains the two handlers of the demo endpoint: `python tests/models/handlers/make_demo.py`.

Writes `model.joblib` beside the committed script of `forecast/churn`, the whole of
`forecast/prices.tar.gz`, and `tests/models/handler_expectations.json`: requests, and what
scikit-learn answers to them here. The versions are those of the handlers' own
requirements.txt for Python 3.11; with them, the files come out the same to the byte on one
machine.
"""
import gzip
import io
import json
import tarfile
from pathlib import Path

import joblib
import numpy
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

REPOSITORY = Path(__file__).resolve().parents[3]
FORECAST = REPOSITORY / "src/server/demo/models/forecast"
EXPECTATIONS = REPOSITORY / "tests/models/handler_expectations.json"
CHURN, PRICES = "forecast/churn", "forecast/prices.tar.gz"
CONTRACTS = ("monthly", "yearly", "two years")
SEED = 11


def customers(random, count):
    """Returns customers, and whether each left: short contracts, large bills and calls for
    help drive them away, years of habit keep them."""
    contract = random.choice(3, count, p=[0.5, 0.3, 0.2])
    months = random.integers(1, 73, count)
    bill = random.normal(65, 22, count).clip(15, 140).round(2)
    calls = random.poisson(1.3, count)
    logit = (numpy.array([0.9, -0.8, -2.2])[contract] - 0.045 * months
             + 0.025 * (bill - 65) + 0.65 * (calls - 1.3))
    left = random.random(count) < 1 / (1 + numpy.exp(-logit))
    rows = [{"contract": CONTRACTS[kind], "months": int(month), "bill": float(euros), "calls": int(call)}
            for kind, month, euros, call in zip(contract, months, bill, calls)]
    return rows, left


def houses(random, count):
    """Returns [square metres, rooms, years, km to the centre] and prices in thousands of
    euros: a metre costs less further out, and old houses are cheaper until they are charming."""
    area = random.uniform(35, 260, count).round()
    rooms = (area / 28 + random.normal(0, 0.8, count)).round().clip(1, 9)
    age = random.uniform(0, 110, count).round()
    far = random.uniform(0.5, 40, count).round(1)
    decay = 1 - 0.004 * numpy.minimum(age, 60) + 0.002 * (age - 80).clip(0)
    price = (1.2 + 4.8 * numpy.exp(-far / 12)) * area * decay + 6 * rooms
    return numpy.column_stack([area, rooms, age, far]), price * random.normal(1, 0.04, count)


def train_churn(random):
    rows, left = customers(random, 4000)
    model = make_pipeline(DictVectorizer(sparse=False), StandardScaler(), LogisticRegression())
    model.fit(rows[:3000], left[:3000])
    print(f"{CHURN}: {model.score(rows[3000:], left[3000:]):.1%} of 1000 others right")
    return model


def train_prices(random):
    rows, price = houses(random, 3000)
    # A house of which something is not known is taken for the usual one in that.
    model = make_pipeline(
        SimpleImputer(strategy="median"),
        GradientBoostingRegressor(n_estimators=150, learning_rate=0.12, subsample=0.8, random_state=SEED),
    )
    model.fit(rows[:2500], price[:2500])
    off = numpy.abs(model.predict(rows[2500:]) / price[2500:] - 1).mean()
    print(f"{PRICES}: off by {off:.1%} on 500 others")
    return model


def pack(path, files):
    """Writes a gzipped tar in which names, order and times do not vary."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    path.write_bytes(gzip.compress(raw.getvalue(), mtime=0))


def dumped(model):
    buffer = io.BytesIO()
    joblib.dump(model, buffer, compress=("zlib", 9))
    return buffer.getvalue()


def churn_expectations(model):
    """Yields requests to the folder target; chances are given to four places, as its script does."""
    some = [
        {"contract": "monthly", "months": 2, "bill": 98.5, "calls": 5},
        {"contract": "two years", "months": 60, "bill": 45.0, "calls": 0},
        {"contract": "yearly", "months": 14, "bill": 72.25, "calls": 2},
        {"contract": "monthly", "months": 30, "bill": 60.0, "calls": 1},
        {"contract": "monthly", "months": 1, "bill": 30.0, "calls": 0},
        {"contract": "yearly", "months": 3, "bill": 130.0, "calls": 6},
    ]
    header = ",".join(some[0])
    for kind, rows in [("json", some[:1]), ("json", some[1:2]), ("json", some), ("csv", some[2:5]), ("csv", some)]:
        chances = model.predict_proba(rows)[:, 1].round(4).tolist()
        answer = [{"label": "leaves" if chance >= 0.5 else "stays", "chance": chance} for chance in chances]
        lines = [header] + [",".join(str(cell) for cell in row.values()) for row in rows]
        yield {
            "target": CHURN,
            "content_type": "application/json" if kind == "json" else "text/csv",
            "accept": "application/json",
            "body": json.dumps({"customers": rows}) if kind == "json" else "\n".join(lines) + "\n",
            "answer_type": "application/json",
            "answer": {"customers": answer},
        }


def price_expectations(model):
    """Yields requests to the archive, which has no script: JSON and CSV, in and out. The
    framework's defaults make 32-bit numbers of what comes."""
    flat, villa, hut = [62, 2, 35, 1.5], [210, 7, 8, 14.5], [80, 3, 95, 33.0]
    unknown = [120, None, None, 6.5]
    cases = [
        ("json", "json", [flat]),
        ("json", "json", [flat, villa, hut]),
        ("json", "json", [unknown, hut]),
        ("json", "csv", [villa, hut]),
        ("csv", "json", [flat, villa]),
        ("csv", "csv", [hut]),
    ]
    types = {"json": "application/json", "csv": "text/csv"}
    for sent, wanted, rows in cases:
        prices = model.predict(numpy.array(rows, dtype=float).astype(numpy.float32)).tolist()
        lines = "".join(",".join(str(cell) for cell in row) + "\n" for row in rows)
        yield {
            "target": PRICES,
            "content_type": types[sent],
            "accept": types[wanted],
            "body": json.dumps(rows) if sent == "json" else lines,
            "answer_type": types[wanted],
            "answer": prices if wanted == "json" else "".join(f"{price}\n" for price in prices),
        }


def main():
    churn = train_churn(numpy.random.default_rng(SEED))
    prices = train_prices(numpy.random.default_rng(SEED + 1))
    (FORECAST / "churn/model.joblib").write_bytes(dumped(churn))
    # The same list: both then use one environment.
    requirements = (FORECAST / "churn/code/requirements.txt").read_bytes()
    settings = (FORECAST / "churn/roundhouse.toml").read_bytes()
    pack(FORECAST / "prices.tar.gz", {
        "model.joblib": dumped(prices), "requirements.txt": requirements, "roundhouse.toml": settings,
    })
    entries = [*churn_expectations(churn), *price_expectations(prices)]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    EXPECTATIONS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    for path in (FORECAST / "churn/model.joblib", FORECAST / "prices.tar.gz"):
        print(f"{path.relative_to(FORECAST)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
