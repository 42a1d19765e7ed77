"""What `cargo metadata` and the lock file say of a build's packages."""

import json
import pathlib
import subprocess
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The platform of the images; packages of others are in no binary of ours.
TARGET = "x86_64-unknown-linux-gnu"


def metadata(*arguments, offline=False):
    """The graph of all packages, as locked."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET]
    command += [*arguments, *(["--offline"] if offline else [])]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return json.loads(told)


def locked():
    """The lock file's packages by name and version."""
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    return {(it["name"], it["version"]): it for it in lock["package"]}


def built(*of, offline=False, edges="normal,build"):
    """Names and versions of what some packages of the workspace are built of, themselves included."""
    command = ["cargo", "tree", "--locked", "--target", TARGET, *of]
    command += ["--edges", edges, "--prefix", "none", "--format", "{p}"]
    command += ["--offline"] if offline else []
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    # `name v1.2.3 (path) (*)`
    lines = (line.split() for line in told.splitlines() if line.strip())
    return {(words[0], words[1].removeprefix("v")) for words in lines}


def needed(node):
    """Dependencies that are built for it."""
    kinds = lambda dep: {kind["kind"] for kind in dep["dep_kinds"]}  # noqa: E731
    return [dep["pkg"] for dep in node["deps"] if kinds(dep) - {"dev"}]
