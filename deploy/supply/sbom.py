"""Prints what is in the binary, as CycloneDX 1.5: each crate with version, licence, checksum, and what
needs it.

usage: sbom.py [--offline] [--features FEATURES | --all-features] > roundhouse.cdx.json
Without features as the images are built: --no-default-features.
"""

import json
import sys
import uuid

import packages

PACKAGE = "roundhouse"


def component(package, lock):
    locked = lock.get((package["name"], package["version"]), {})
    found = {
        "type": "library",
        "bom-ref": reference(package),
        "name": package["name"],
        "version": package["version"],
        "purl": f"pkg:cargo/{package['name']}@{package['version']}",
    }
    if package["license"]:
        found["licenses"] = [{"expression": package["license"].replace(" / ", " OR ").replace("/", " OR ")}]
    if package["authors"]:
        found["author"] = ", ".join(package["authors"])
    if "checksum" in locked:
        found["hashes"] = [{"alg": "SHA-256", "content": locked["checksum"]}]
    if package["repository"]:
        found["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return found


def reference(package):
    return f"{package['name']}@{package['version']}"


def document(graph, lock, linked):
    by_id = {
        package["id"]: package
        for package in graph["packages"] if (package["name"], package["version"]) in linked
    }
    nodes = {node["id"]: node for node in graph["resolve"]["nodes"]}
    whole = {package["name"]: package for package in by_id.values()}[PACKAGE]
    root = {**component(whole, lock), "type": "application"}
    others = (package for package in by_id.values() if package is not whole)
    parts = sorted((component(package, lock) for package in others), key=lambda it: it["bom-ref"])
    needed = lambda id_: {reference(by_id[dep]) for dep in packages.needed(nodes[id_]) if dep in by_id}  # noqa: E731
    needs = [{"ref": reference(package), "dependsOn": sorted(needed(id_))} for id_, package in by_id.items()]
    # The same build has the same document.
    name = json.dumps([part["bom-ref"] for part in parts])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, name)}",
        "version": 1,
        "metadata": {"component": root},
        "components": parts,
        "dependencies": sorted(needs, key=lambda it: it["ref"]),
    }


def main():
    given = [it for it in sys.argv[1:] if it != "--offline"] or ["--no-default-features"]
    offline = "--offline" in sys.argv
    linked = packages.built("--package", PACKAGE, *given, offline=offline)
    # The graph has no features of the package's by itself but those that are default.
    asked = [it for it in given if it != "--no-default-features"]
    graph = packages.metadata(*asked, offline=offline)
    json.dump(document(graph, packages.locked(), linked), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
