"""What the repository's host reads: templates that it takes, and a workflow that runs `.ci/run`."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.test_house import ROOT, make_targets, project

GITHUB = ROOT / ".github"


@pytest.mark.parametrize("name", ["defect", "wish"])
def test_a_form_has_what_the_host_asks_for(name: str) -> None:
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert form["name"] and form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(
        re.fullmatch(r"[\w-]+", field["id"]) and field["attributes"]["label"] for field in fields
    )
    assert len({field["id"] for field in fields}) == len(fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_the_workflow_runs_the_one_script_with_every_supported_python() -> None:
    job = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())["jobs"]["all"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    said = {line.rsplit(" ")[-1] for line in project()["classifiers"] if ":: 3." in line}
    assert set(job["strategy"]["matrix"]["python"]) == said
    assert all("@" in step["uses"] for step in job["steps"] if "uses" in step)


def test_the_pull_requests_list_names_make_targets_that_exist() -> None:
    text = (GITHUB / "PULL_REQUEST_TEMPLATE.md").read_text()
    named = set(re.findall(r"`make (\w+)`", text))
    assert named and named <= make_targets()
