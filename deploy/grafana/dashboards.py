"""Write the Grafana dashboards as JSON from `panels`.

python -m deploy.grafana.dashboards
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.grafana.panels import ROWS, Panel
from observability.metrics.registry import METRICS

DIRECTORY = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "duet-prometheus"}
"""The data source of provisioning/datasources/prometheus.yml."""
HEIGHT, STAT_HEIGHT = 8, 4
MEANINGS = {metric.name: metric.meaning for metric in METRICS}
NAMES = re.compile(r"\bduet_[a-z0-9_]+|\bvllm:[a-z0-9_]+|\bprocess_[a-z0-9_]+")


def expressions(title: str) -> Iterator[tuple[Panel, str]]:
    """Yield every query of a dashboard with its panel."""
    for panels in ROWS[title].values():
        for panel in panels:
            for expression in panel.queries.values():
                yield panel, expression


def dashboard(title: str) -> dict[str, Any]:
    """Return a dashboard as Grafana's JSON model."""
    placed: list[dict[str, Any]] = []
    left = top = below = 0
    for heading, panels in ROWS[title].items():
        if heading:
            placed.append({"type": "row", "title": heading, "collapsed": False, "panels": []})
            placed[-1]["gridPos"] = {"x": 0, "y": below, "w": 24, "h": 1}
            left, top, below = 0, below + 1, below + 1
        for panel in panels:
            height = STAT_HEIGHT if panel.kind == "stat" else HEIGHT
            if left + panel.width > 24:
                left, top = 0, below
            placed.append(_panel(panel) | {"gridPos": {"x": left, "y": top, "w": panel.width, "h": height}})
            left, below = left + panel.width, max(below, top + height)
        left, top = 0, below
    return {
        "uid": f"duet-{name(title)}",
        "title": f"Duet: {title}",
        "tags": ["duet"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "links": [{"type": "dashboards", "tags": ["duet"], "title": "Duet", "keepTime": True, "includeVars": True}],
        "templating": {"list": [_run()]},
        "panels": [panel | {"id": number} for number, panel in enumerate(placed, start=1)],
    }


def name(title: str) -> str:
    """Return the file name of a dashboard, without suffix."""
    return title.lower().replace(" ", "-")


def _run() -> dict[str, Any]:
    query = "label_values(duet_iterations_wanted, run)"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "run"},
        "definition": query,
        "refresh": 2,  # on every change of the time range
        "sort": 2,  # names start with a date; newest first
    }


def _panel(panel: Panel) -> dict[str, Any]:
    custom: dict[str, Any] = {"lineWidth": 2, "fillOpacity": 30 if panel.stacked else 0, "showPoints": "auto"}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    if panel.logarithmic:
        custom["scaleDistribution"] = {"type": "log", "log": 10}
    is_stat = panel.kind == "stat"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": _description(panel),
        "datasource": SOURCE,
        "targets": [
            {"refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend or panel.title}
            for place, (legend, expression) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {
            "defaults": {"unit": "short" if panel.unit == "nats" else panel.unit, "custom": {} if is_stat else custom},
            "overrides": [],
        },
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "value_and_name"}
        if is_stat
        else {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }


def _description(panel: Panel) -> str:
    """Return the meaning of each metric once, and the panel's note."""
    used = [found for query in panel.queries.values() for found in NAMES.findall(query)]
    meanings = [MEANINGS[metric] for metric in dict.fromkeys(used) if metric in MEANINGS]
    return " ".join([*meanings, panel.note]).strip()


def text(title: str) -> str:
    """Return the content of a dashboard's file."""
    return json.dumps(dashboard(title), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    for title in ROWS:
        (DIRECTORY / f"{name(title)}.json").write_text(text(title), "utf-8")


if __name__ == "__main__":
    main()
