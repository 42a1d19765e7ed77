"""Lints the Dockerfiles, and holds what they name against the tree.

usage: check_docker.py ROOT
"""

import pathlib
import re
import subprocess
import sys
import tomllib


def check(root, dockerfile):
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
    for feature in re.findall(r"--features (\S+)", text):
        assert feature in server["features"], feature
    assert any(it["name"] == pathlib.Path("/roundhouse").name for it in server["bin"])

    stages = {name: stage for stage, name in re.findall(r"(?s)(\S+ AS (\w+)\n.*?)(?=\nFROM |\Z)", text)}
    ignored = (root / ".dockerignore").read_text().split()
    assert "COPY . ." in stages["build"] and "target/" in ignored and ".git/" in ignored, ignored
    for name in ("small", "handlers"):
        users = re.findall(r"^USER (\S+)", stages[name], re.M)
        assert users[-1] == "10001:10001", f"stage {name} ends as {users[-1]}"
    keys = (root / "config/default.toml").read_text()
    for variable in re.findall(r"^ENV (ROUNDHOUSE_\w+)=", text, re.M):
        section, key = variable.removeprefix("ROUNDHOUSE_").lower().split("_", 1)
        assert re.search(rf"^\[{section}\]$", keys, re.M), variable
        assert re.search(rf"^(# )?{key} = ", keys, re.M), variable
    assert "ENV ROUNDHOUSE_CACHE_DIR=" in text
    assert 'ENTRYPOINT ["/usr/local/bin/roundhouse"]' in text and 'CMD ["serve"]' in text
    for label in ("multi-models=true", "accept-bind-to-port=true"):
        assert f"com.amazonaws.sagemaker.capabilities.{label}" in text, label
    return text


def main():
    root = pathlib.Path(sys.argv[1])
    found = sorted((root / "deploy/docker").glob("Dockerfile*"))
    texts = {dockerfile.name: check(root, dockerfile) for dockerfile in found}
    assert sorted(texts) == ["Dockerfile", "Dockerfile.cuda"], sorted(texts)
    assert "--features" not in texts["Dockerfile"]
    cuda = texts["Dockerfile.cuda"]
    assert "--features cuda" in cuda
    assert "ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility\n" in cuda, "NVML comes with `utility`"
    # Libraries of one version where it is built and where it runs.
    bases = re.findall(r"^FROM nvidia/cuda:([\d.]+)-(\w+)-(\w+)", cuda, re.M)
    assert [it[1] for it in bases] == ["devel", "runtime"], bases
    assert len({(version, system) for version, _, system in bases}) == 1, bases
    print("the Dockerfiles are sound")


main()
