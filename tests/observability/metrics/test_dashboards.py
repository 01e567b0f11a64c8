"""The dashboards: what they ask for exists, and what exists is on one of them."""

import json
import re

import pytest

from deploy.grafana import dashboards
from deploy.grafana.panels import ROWS
from observability.metrics.registry import METRICS

PLACES = {title: dashboards.dashboard(title)["panels"] for title in ROWS}


@pytest.mark.parametrize("title", ROWS)
def test_the_files_are_current(title):
    file = dashboards.DIRECTORY / f"{dashboards.name(title)}.json"
    assert file.read_text("utf-8") == dashboards.text(title), "run: python -m deploy.grafana.dashboards"
    assert json.loads(file.read_text("utf-8"))["uid"] == f"duet-{dashboards.name(title)}"


def test_no_other_file_lies_beside_them():
    assert {path.stem for path in dashboards.DIRECTORY.iterdir()} == {dashboards.name(title) for title in ROWS}


def test_panels_show_every_metric_and_none_that_there_is_not():
    queries = [expression for title in ROWS for _, expression in dashboards.expressions(title)]
    shown = {found for query in queries for found in re.findall(r"\bduet_[a-z0-9_]+", query)}
    assert shown == {metric.name for metric in METRICS}


def test_every_series_is_that_of_the_run_that_is_chosen():
    for title in ROWS:
        for panel, expression in dashboards.expressions(title):
            selectors = re.findall(r"\b(?:duet_|vllm:|process_|scrape_)[a-z0-9_]+(\{[^}]*\})?", expression)
            assert selectors, panel.title
            assert all('run="$run"' in selector for selector in selectors), expression


@pytest.mark.parametrize("title", ROWS)
def test_panels_have_their_own_place_and_number(title):
    panels = PLACES[title]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("title", ROWS)
def test_panels_say_how_to_read_them(title):
    for panel in PLACES[title]:
        if panel["type"] == "row":
            continue
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends), panel["title"]
        assert panel["description"] or "vllm" in panel["title"].lower() or panel["title"] in ("Memory", "Scrapes")


def test_the_data_source_is_the_one_that_is_provisioned(root):
    provisioned = (root / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text("utf-8")
    assert f"uid: {dashboards.SOURCE['uid']}" in provisioned
