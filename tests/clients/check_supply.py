"""Holds what the images carry as their parts' list against CycloneDX's schema, and deny.toml against the
lock file: also a bad one, which must be found.

usage: check_supply.py ROOT
"""

import json
import pathlib
import subprocess
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def main():
    supply = pathlib.Path(sys.argv[1])
    run = lambda *words: subprocess.run([sys.executable, *words], cwd=supply, capture_output=True, text=True)  # noqa: E731
    made = run("sbom.py")
    assert made.returncode == 0, made.stderr
    wrong = JsonStrictValidator(SchemaVersion.V1_5).validate_str(made.stdout)
    assert wrong is None, wrong
    told = json.loads(made.stdout)
    names = {part["name"] for part in told["components"]}
    assert {"axum", "tokenizers", "rustls"} <= names, "what the binary is made of"
    assert not names & {"s3s", "criterion", "proptest"}, "what only the demo and tests use"
    others = [part for part in told["components"] if not part["name"].startswith("roundhouse")]
    assert all("hashes" in part and "licenses" in part for part in others)

    checked = run("check.py")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    sys.path.insert(0, str(supply))
    import check

    licences = {"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"}
    good = ["MIT", "GPL-3.0 OR MIT", "(GPL-3.0 OR MIT) AND Apache-2.0", "GPL-3.0/MIT", "Apache-2.0 WITH LLVM-exception"]
    bad = ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND GPL-3.0", "MIT WITH other", "none"]
    assert all(check.allowed(it, licences) for it in good)
    assert not any(check.allowed(it, licences) for it in bad)
    rules = {
        "licenses": {"allow": ["MIT"]}, "bans": {"deny": [{"name": "b"}]},
        "sources": {"allow-registry": ["https://r"]},
    }
    package = lambda name, licence: {"id": name, "name": name, "version": "1", "license": licence, "dependencies": []}  # noqa: E731
    graph = {"workspace_members": ["own"], "packages": [package("a", "GPL-3.0"), package("b", "MIT"), package("c", None)]}
    graph["packages"].append({**package("own", "MIT"), "dependencies": [{"name": "a", "req": "*"}]})
    lock = {
        ("a", "1"): {"source": "git+https://x"}, ("b", "1"): {"source": "registry+https://r"},
        ("c", "1"): {"source": "registry+https://r", "checksum": "0"}, ("own", "1"): {},
    }
    found = list(check.faults(rules, graph, lock, {("b", "1")}))
    assert len(found) == 6, found
    print("ok")


if __name__ == "__main__":
    main()
