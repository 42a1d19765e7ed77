"""Holds deploy/kubernetes against Kubernetes' own schemas, and its parts against one another.

usage: check_kubernetes.py FOLDER [SETTINGS]; the settings' file of the ConfigMap is written to SETTINGS.
"""

import copy
import pathlib
import re
import sys
import tomllib

import jsonpatch
import kubernetes_validate
import yaml

VERSIONS = ("1.30", "1.33", "1.37")
SECONDS = {"s": 1, "m": 60}
BYTES = {"Mi": 2**20, "Gi": 2**30, "MiB": 2**20, "GiB": 2**30}


def number(text, units):
    value, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", str(text)).groups()
    return int(value) * units[unit]


def resources(folder):
    """What a kustomization lists; every other file beside it is forgotten."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    listed = kustomization["resources"]
    there = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed) == there, f"listed {sorted(listed)}, there {sorted(there)}"
    return [yaml.safe_load((folder / name).read_text()) for name in listed]


def patched(base, folder):
    """The base with the patches of an overlay, as kustomize applies them."""
    documents = copy.deepcopy(base)
    for patch in yaml.safe_load((folder / "kustomization.yaml").read_text())["patches"]:
        wanted = patch["target"]
        hits = [at for at, it in enumerate(documents)
                if (it["kind"], it["metadata"]["name"]) == (wanted["kind"], wanted["name"])]
        assert len(hits) == 1, f"{folder}: {wanted} is there {len(hits)} times"
        documents[hits[0]] = jsonpatch.apply_patch(documents[hits[0]], yaml.safe_load(patch["patch"]))
    return documents


def one(documents, kind):
    found = [it for it in documents if it["kind"] == kind]
    assert len(found) == 1, f"{len(found)} of kind {kind}"
    return found[0]


def check_names(documents):
    deployment = one(documents, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        one(documents, "Service")["spec"]["selector"],
        one(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors), selectors
    pod = deployment["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == one(documents, "ServiceAccount")["metadata"]["name"]
    container = pod["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert one(documents, "Service")["spec"]["ports"][0]["targetPort"] in ports
    for rule in one(documents, "NetworkPolicy")["spec"]["ingress"]:
        assert all(port["port"] in ports for port in rule["ports"]), rule
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert volumes == mounts, f"volumes {volumes}, mounts {mounts}"
    configured = next(v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v)
    assert configured == one(documents, "ConfigMap")["metadata"]["name"]


def check_confined(documents):
    """What the namespace's own standard, "restricted", would refuse, and a root that can be written."""
    pod = one(documents, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] >= 10000
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    for container in pod["containers"] + pod.get("initContainers", []):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"]["drop"] == ["ALL"]


def check_settings(documents, settings):
    """The pod's bounds and the server's fit each other."""
    pod = one(documents, "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    listen = settings["listen"]
    assert listen["data"] == f"0.0.0.0:{ports['data']}", listen
    assert listen["health"] == f"0.0.0.0:{ports['health']}", listen
    assert listen["admin"].startswith("127.0.0.1:"), listen
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == "health", probe
    wedged = number(settings.get("lane", {}).get("wedged_after", "30s"), SECONDS)
    assert wedged >= 2 * container["livenessProbe"]["timeoutSeconds"]
    stop = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = number(settings["shutdown"]["drain_timeout"], SECONDS)
    grace = pod["terminationGracePeriodSeconds"]
    assert stop + drain + 10 <= grace, f"{stop} + {drain} s in {grace} s"
    limits = container["resources"]["limits"]
    assert limits["memory"] == container["resources"]["requests"]["memory"]
    assert number(settings["memory"]["budget"], BYTES) <= 0.85 * number(limits["memory"], BYTES)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert settings["cache"]["dir"].startswith(mounts["cache"] + "/")
    assert settings["auth"]["keys"].startswith(mounts["keys"] + "/")
    assert container["args"][2].startswith(mounts["config"] + "/")
    cache = next(volume for volume in pod["volumes"] if volume["name"] == "cache")
    if "emptyDir" in cache:
        room = number(cache["emptyDir"]["sizeLimit"], BYTES)
    else:
        claim = cache["ephemeral"]["volumeClaimTemplate"]["spec"]
        room = number(claim["resources"]["requests"]["storage"], BYTES)
    assert number(settings["cache"]["size"], BYTES) <= 0.95 * room
    empty = [number(v["emptyDir"]["sizeLimit"], BYTES) for v in pod["volumes"] if "emptyDir" in v]
    assert sum(empty) < number(limits["ephemeral-storage"], BYTES), empty


def main():
    folder = pathlib.Path(sys.argv[1])
    base = resources(folder / "base")
    overlay = patched(base, folder / "own-volume")
    checked = 0
    for documents in (base, overlay):
        for document in documents:
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)
                checked += 1
        written = one(documents, "ConfigMap")["data"]["roundhouse.toml"]
        check_names(documents)
        check_confined(documents)
        check_settings(documents, tomllib.loads(written))
    if len(sys.argv) > 2:
        pathlib.Path(sys.argv[2]).write_text(written)
    print(f"{checked} documents valid for Kubernetes {', '.join(VERSIONS)}")


main()
