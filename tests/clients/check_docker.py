"""Lints the Dockerfile, and holds what it names against the tree.

usage: check_docker.py ROOT
"""

import pathlib
import re
import subprocess
import sys
import tomllib


def main():
    root = pathlib.Path(sys.argv[1])
    dockerfile = root / "deploy/docker/Dockerfile"
    hadolint = pathlib.Path(sys.executable).with_name("hadolint")
    subprocess.run([hadolint, dockerfile], check=True)
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.M)

    workspace = tomllib.loads((root / "Cargo.toml").read_text())["workspace"]
    least = workspace["package"]["rust-version"]
    assert f"FROM rust:{least}-bookworm" in text, f"the workspace wants Rust {least}"
    package = re.search(r"--package (\S+)", text).group(1)
    manifests = [tomllib.loads((root / member / "Cargo.toml").read_text()) for member in workspace["members"]]
    server = next(it for it in manifests if it["package"]["name"] == package)
    assert server["features"]["default"], "--no-default-features leaves nothing out"
    assert any(it["name"] == pathlib.Path("/roundhouse").name for it in server["bin"])

    build = [it for it in text.split("FROM ") if " AS build" in it][0]
    ignored = (root / ".dockerignore").read_text().split()
    assert "COPY . ." in build and "target/" in ignored and ".git/" in ignored, ignored
    for stage in text.split("FROM ")[2:]:
        users = re.findall(r"^USER (\S+)", stage, re.M)
        assert users[-1] == "10001:10001", f"a stage ends as {users[-1]}"
    keys = (root / "config/default.toml").read_text()
    for variable in re.findall(r"^ENV (\w+)=", text, re.M):
        section, key = variable.removeprefix("ROUNDHOUSE_").lower().split("_", 1)
        assert re.search(rf"^\[{section}\]$", keys, re.M), variable
        assert re.search(rf"^(# )?{key} = ", keys, re.M), variable
    assert 'ENTRYPOINT ["/usr/local/bin/roundhouse"]' in text and 'CMD ["serve"]' in text
    for label in ("multi-models=true", "accept-bind-to-port=true"):
        assert f"com.amazonaws.sagemaker.capabilities.{label}" in text, label
    print("the Dockerfile is sound")


main()
