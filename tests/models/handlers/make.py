"""Makes the model files of the handlers in this folder: `python make.py OUTDIR`.

Needs joblib, numpy, Pillow, scikit-learn, torch (for CPUs) and xgboost. With the same
versions on the same machine the weights come out the same, and so do the files, but for
those of TorchScript. The scripts are those beside this file; afterwards `expected.py OUTDIR`
writes what each target must answer.
"""
import gzip
import io
import os
import shutil
import sys
import tarfile

import joblib
import numpy
import torch
import xgboost
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = os.path.dirname(os.path.abspath(__file__))
SEED = 7


def folder(out, name, scripted=True):
    """Makes an empty folder for a target, with its script when it has one."""
    path = os.path.join(out, name)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    if scripted:
        shutil.copytree(os.path.join(HERE, name, "code"), os.path.join(path, "code"),
                        ignore=shutil.ignore_patterns("__pycache__"))
    return path


def packed(path):
    """Turns a target's folder into NAME.tar.gz; names, order and times do not vary."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for base, folders, files in os.walk(path):
            folders.sort()
            for name in sorted(files):
                full = os.path.join(base, name)
                entry = tarfile.TarInfo(os.path.relpath(full, path))
                entry.size = os.path.getsize(full)
                with open(full, "rb") as file:
                    archive.addfile(entry, file)
    with open(path + ".tar.gz", "wb") as file:
        file.write(gzip.compress(raw.getvalue(), mtime=0))
    shutil.rmtree(path)


def iris(out):
    data = load_iris()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(data.data, data.target)
    joblib.dump(model, os.path.join(folder(out, "iris-sklearn"), "model.joblib"))


def diabetes(out):
    data = load_diabetes()
    model = RandomForestRegressor(20, max_depth=5, random_state=SEED).fit(data.data, data.target)
    joblib.dump(model, os.path.join(folder(out, "plain-sklearn", scripted=False), "model.joblib"))


def boosted(objective, rows, labels):
    options = {"objective": objective, "max_depth": 4, "seed": SEED, "nthread": 1}
    return xgboost.train(options, xgboost.DMatrix(rows, label=labels), 30)


def prices(out):
    rows = numpy.random.default_rng(SEED).uniform(0, 10, (500, 6))
    model = boosted("reg:squarederror", rows, rows @ [30.0, 8, 3, 1, 0, -5] + 40)
    model.save_model(os.path.join(folder(out, "prices-xgboost", scripted=False), "xgboost-model"))


def churn(out):
    rows = numpy.random.default_rng(SEED + 1).normal(size=(500, 8))
    model = boosted("binary:logistic", rows, (rows[:, 0] + rows[:, 3] * rows[:, 5] > 0.3).astype(float))
    path = folder(out, "churn-xgboost")
    model.save_model(os.path.join(path, "xgboost-model"))
    packed(path)


def digits(out):
    torch.manual_seed(SEED)
    data = load_digits()
    pixels, labels = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 10))
    adam = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(120):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(model(pixels / 16), labels).backward()
        adam.step()
    path = folder(out, "digits-pytorch")
    scaled = torch.nn.Sequential(Scaled(), *model).eval()
    torch.jit.save(torch.jit.script(scaled), os.path.join(path, "model.pth"))
    packed(path)


class Scaled(torch.nn.Module):
    """Pixels of 0 to 16 as numbers of 0 to 1."""

    def forward(self, pixels: torch.Tensor):
        return pixels / 16


def network(out):
    torch.manual_seed(SEED)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).eval()
    path = folder(out, "plain-pytorch", scripted=False)
    torch.jit.save(torch.jit.script(model), os.path.join(path, "model.pth"))


def pictures(out):
    with open(os.path.join(folder(out, "pictures-diffusion"), "model_index.json"), "w") as file:
        file.write('{"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.0.0"}\n')


def main():
    out = sys.argv[1]
    torch.set_num_threads(1)
    os.makedirs(out, exist_ok=True)
    for make in (iris, diabetes, prices, churn, digits, network, pictures):
        make(out)
    folder(out, "words-stream")
    folder(out, "echo")
    print("made", ", ".join(sorted(os.listdir(out))), "in", out)


if __name__ == "__main__":
    main()
