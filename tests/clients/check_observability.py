"""Holds the dashboard and the alerts against the table of metrics, and a server's metrics too.

usage: check_observability.py DEPLOY [METRICS]; METRICS is a file with what a server's /metrics said.
"""

import json
import pathlib
import re
import sys

import yaml

ANYWHERE = {"job", "instance", "le", "quantile"}
"""Labels that Prometheus and its forms of metrics bring along."""


def table(path):
    """Name to type, unit and labels."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \| ([^|]*) \| .+ \|$", path.read_text(), re.M)
    return {name: (kind, unit, {it for it in re.split(r", |\s", labels) if it}) for name, kind, unit, labels in rows}


def row(metrics, series):
    """The table's row of a series' name; parts of histograms belong to their whole."""
    for part in ("", "_bucket", "_sum", "_count"):
        whole = series.removesuffix(part) if part else series
        if whole in metrics and (not part or metrics[whole][0] == "histogram"):
            return whole
    return None


def check_expression(metrics, where, text):
    text = re.sub(r'\[\$__rate_interval\]', "[5m]", text)
    found = re.findall(r"\b(roundhouse_\w+)(\{[^}]*\})?", text)
    assert found or 'up{job="roundhouse"}' in text, f"{where}: no metric in {text}"
    known = set(ANYWHERE)
    for name, matchers in found:
        whole = row(metrics, name)
        assert whole, f"{where}: {name} is no metric"
        kind, _, labels = metrics[whole]
        if kind == "histogram" and not name.endswith(("_bucket", "_sum", "_count")):
            # No buckets: exported as a summary.
            assert whole == "roundhouse_engine_step_rows", f"{where}: {name} is a histogram"
        assert kind != "counter" or re.search(r"(rate|increase)\(|unless|-", text), f"{where}: a bare counter"
        known |= labels
        for label in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', matchers or ""):
            assert label in labels | ANYWHERE, f"{where}: {name} has no label {label}"
    for labels in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", text):
        unknown = {it.strip() for it in labels.split(",")} - known
        assert not unknown, f"{where}: nothing has the labels {unknown}"
    return {row(metrics, name) for name, _ in found}


def check_dashboard(metrics, path):
    dashboard = json.loads(path.read_text())
    used, places = set(), []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            used |= check_expression(metrics, panel["title"], target["expr"])
        at = panel["gridPos"]
        places += [(panel["id"], x, y) for x in range(at["x"], at["x"] + at["w"])
                   for y in range(at["y"], at["y"] + at["h"])]
    cells = [(x, y) for _, x, y in places]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24, "panels overlap"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    return used


def check_alerts(metrics, folder):
    rules = yaml.safe_load((folder / "alerts.yaml").read_text())["groups"][0]["rules"]
    tested = yaml.safe_load((folder / "alerts.test.yaml").read_text())["tests"]
    fires = {case["alertname"] for test in tested for case in test["alert_rule_test"] if case["exp_alerts"]}
    silent = {case["alertname"] for case in tested[-1]["alert_rule_test"] if not case["exp_alerts"]}
    page = (folder.parent / "operations.md").read_text()
    headings = re.findall(r"^### (Roundhouse\w+)$", page, re.M)
    names = [rule["alert"] for rule in rules]
    assert sorted(headings) == sorted(names), set(headings) ^ set(names)
    for rule in rules:
        name = rule["alert"]
        check_expression(metrics, name, rule["expr"])
        assert name in fires, f"{name} is never seen to fire"
        assert name in silent, f"{name} is not tried on a healthy server"
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert rule["annotations"]["runbook"] == f"operations.md#{name.lower()}", name
    return len(rules)


def check_server(metrics, path):
    """What a server shows is in the table: type, help, labels."""
    text, seen = path.read_text(), set()
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M))
    helped = set(re.findall(r"^# HELP (\w+) \S", text, re.M))
    for line in text.splitlines():
        hit = re.match(r"(roundhouse_\w+)(?:\{(.*)\})? \S+$", line)
        if not hit:
            continue
        name = row(metrics, hit[1])
        assert name, f"{hit[1]} is not in the table"
        kind = kinds[name]
        wanted = "summary" if name == "roundhouse_engine_step_rows" else metrics[name][0]
        assert kind == wanted, f"{name} is a {kind}"
        assert name in helped, f"{name} has no help"
        shown = set(re.findall(r'(\w+)="', hit[2] or "")) - {"le", "quantile"}
        assert shown == metrics[name][2], f"{name} has the labels {shown}"
        seen.add(name)
    assert len(seen) > 50, f"only {len(seen)} metrics"
    return len(seen)


def main():
    deploy = pathlib.Path(sys.argv[1])
    folder = deploy / "observability"
    metrics = table(folder / "metrics.md")
    used = check_dashboard(metrics, folder / "dashboard.json")
    alerts = check_alerts(metrics, folder)
    seen = check_server(metrics, pathlib.Path(sys.argv[2])) if len(sys.argv) > 2 else 0
    print(f"{len(metrics)} metrics, {len(used)} of them on the dashboard; {alerts} alerts; {seen} metrics of a server")


main()
