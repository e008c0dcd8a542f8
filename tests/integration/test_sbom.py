"""The bill of materials names what an installation consists of, with versions and licences."""

from __future__ import annotations

import json

from click.testing import CliRunner

from tests.tool_modules import load_tool


def test_direct_and_indirect_packages_are_listed_with_their_licences(tmp_path):
    outcome = CliRunner().invoke(load_tool("sbom").command, ["--out", str(tmp_path)])
    assert outcome.exit_code == 0, outcome.output
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "odm-deploy")
    found = {each["name"]: each for each in bill["components"]}
    # mdurl comes through markdown-it-py, and that through rich.
    assert {"numpy", "onnx", "rich", "mdurl", "torch"} <= set(found)
    assert "odm-deploy" not in found
    assert found["mdurl"]["purl"] == f"pkg:pypi/mdurl@{found['mdurl']['version']}"
    assert "MIT" in found["mdurl"]["licenses"][0]["license"]["name"]
    assert "| numpy |" in (tmp_path / "licences.md").read_text()
