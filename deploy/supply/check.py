"""Holds the lock file against deny.toml: licences, bans, sources, checksums.

cargo-deny does the same and more, where it is installed; this needs Python and Cargo alone.

usage: check.py [--offline]
"""

import re
import sys
import tomllib

import packages


def allowed(expression, licences):
    """Whether a licence expression (SPDX; `/` is an old OR) can be met by what is allowed."""
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    at = 0

    def term():
        nonlocal at
        if words[at] == "(":
            at += 1
            value = either()
            if words[at] != ")":
                raise ValueError(expression)
            at += 1
            return value
        name = words[at]
        at += 1
        if at < len(words) and words[at] == "WITH":
            name = f"{name} WITH {words[at + 1]}"
            at += 2
        return name in licences

    def all_of():
        nonlocal at
        value = term()
        while at < len(words) and words[at] == "AND":
            at += 1
            value = term() and value
        return value

    def either():
        nonlocal at
        value = all_of()
        while at < len(words) and words[at] == "OR":
            at += 1
            value = all_of() or value
        return value

    value = either()
    if at != len(words):
        raise ValueError(expression)
    return value


def faults(rules, graph, lock, used):
    """All that is not as deny.toml wants it. `used` has what is really built: `cargo metadata` tells of
    features that nobody turns on, too."""
    licences, banned = set(rules["licenses"]["allow"]), {it["name"] for it in rules["bans"]["deny"]}
    sources = {f"registry+{it}" for it in rules["sources"]["allow-registry"]}
    own = set(graph["workspace_members"])
    for package in graph["packages"]:
        name = f"{package['name']} {package['version']}"
        try:
            if not allowed(package["license"] or "none", licences):
                yield f"{name}: the licence {package['license']} is not allowed"
        except (ValueError, IndexError):
            yield f"{name}: the licence {package['license']} is not understood"
        if package["name"] in banned and (package["name"], package["version"]) in used:
            yield f"{name}: is banned"
        for needs in package["dependencies"] if package["id"] in own else []:
            if needs["req"] == "*" and not needs.get("path"):
                yield f"{name}: any version of {needs['name']} would do"
    # The lock file knows other platforms' packages, too.
    for (name, version), package in lock.items():
        source = package.get("source")
        if source is None:
            continue
        if source not in sources:
            yield f"{name} {version}: is from {source}"
        elif "checksum" not in package:
            yield f"{name} {version}: has no checksum"


def main():
    rules = tomllib.loads((packages.ROOT / "deny.toml").read_text())
    graph = packages.metadata(offline="--offline" in sys.argv)
    lock = packages.locked()
    used = packages.built("--workspace", offline="--offline" in sys.argv, edges="normal,build,dev")
    found = sorted(faults(rules, graph, lock, used))
    print("\n".join(found) or f"{len(graph['packages'])} packages, {len(lock)} locked: as deny.toml wants them")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
