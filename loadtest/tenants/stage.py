"""A server, its models and its tenants: shared by the two programs of this folder."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(HERE, "..", "chaos"))
from served import Served  # noqa: E402,F401


def beside(folder: str):
    """Another test's `models.py`: two of them have that name."""
    path = os.path.join(HERE, "..", folder, "models.py")
    spec = importlib.util.spec_from_file_location(f"{folder}_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Classifiers that sign their answers, and decoders.
signed, decoders = beside("chaos"), beside("soak")

SETTINGS = """version = 1
[listen]
data = "127.0.0.1:0"
admin = "127.0.0.1:0"
[cache]
dir = "{work}/cache"
[log]
access = "{work}/access.log"
level = "info"
[usage]
file = "{work}/usage.jsonl"
detail = "request"
interval = "1s"
{more}
[[endpoint]]
name = "default"
[[endpoint.mount]]
uri = "file://{work}/store/"
"""


def write_model(work: str, target: str, files: dict[str, bytes]) -> None:
    folder = os.path.join(work, "store", target)
    os.makedirs(folder, exist_ok=True)
    for path, body in files.items():
        with open(os.path.join(folder, path), "wb") as file:
            file.write(body)


def keys(binary: str, work: str, tenants: list[str]) -> dict[str, str]:
    """A bearer key for each tenant."""
    found = {}
    for tenant in tenants:
        command = [binary, "keys", "create", "--tenant", tenant, "--json", "--keys", f"{work}/keys.json"]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[tenant] = json.loads(told)["key"]
    return found


def replace(path: str, text: str) -> None:
    """In one step, as an operator should."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".new", path)


def usage(binary: str, work: str) -> list[dict]:
    """What the ledger adds up to."""
    command = [binary, "usage", "--file", f"{work}/usage.jsonl", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
