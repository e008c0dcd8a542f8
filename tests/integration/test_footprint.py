"""The tool that tells what a bundle takes: real processes on both runtimes of a CPU."""

from __future__ import annotations

from odm_deploy.checkpoint import save_model
from tests.command_line import run_cli
from tests.factories import exact_model
from tests.tool_modules import load_tool


def test_files_and_runtimes_are_measured_in_processes_of_their_own(tmp_path, capsys):
    save_model(exact_model(), tmp_path / "model.pt")
    assert run_cli("export", tmp_path / "model.pt", "-o", tmp_path / "b", "--no-engine").code == 0
    tool = load_tool("footprint")
    arguments = [str(tmp_path / "b"), "--size", "24x16", "--rounds", "1", "--runtime", "onnxruntime"]
    tool.command([*arguments, "--runtime", "no such one"], standalone_mode=False)
    printed = capsys.readouterr()
    assert "model.cpu.onnx" in printed.out
    (row,) = [line for line in printed.out.splitlines() if "onnxruntime" in line]
    opened, first, following, peak, before = (cell.strip() for cell in row.strip("| ").split("|")[2:])
    assert all(cell.endswith(" s") and float(cell[:-2]) >= 0 for cell in (opened, first, following))
    assert float(peak.removesuffix(" MiB")) > float(before.removesuffix(" MiB")) > 10
    assert "no such one left out: " in printed.err
    assert "Traceback" not in printed.err
