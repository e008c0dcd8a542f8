"""`tools/accounting.py` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def accounting(*arguments):
    return subprocess.run(
        [sys.executable, "tools/accounting.py", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_json_has_table_4_and_nothing_else_on_stdout():
    done = accounting("--convention", "paper", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["convention"] == "paper"
    assert document["output_px"] == {"height": 1080, "width": 1920}
    found = {
        (entry["network"], entry["bits"]): (round(entry["storage_kwords"], 1), round(entry["bit_operations_t"], 1))
        for entry in document["networks"]
    }
    assert found == {
        ("edsr", 32): (1517.6, 526.4),
        ("edsr", 2): (411.7, 215.1),
        ("rdn", 32): (22271.1, 6032.9),
        ("rdn", 2): (1715.9, 236.6),
        ("srresnet", 32): (1546.8, 588.8),
        ("srresnet", 2): (440.9, 276.9),
    }


def test_table_lists_layers_and_reasons():
    done = accounting("--network", "rdn", "--bits", "2", "--layers")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("rdn x4") and "1715.9" in line and "236.6" in line for line in lines)
    assert any("GFF.1" in line and "w2a32" in line for line in lines)
    assert any("GFF.0" in line and "w2a2" in line for line in lines)
    assert lines[-1].startswith("rdn: ")


def test_methods_have_rows_with_what_they_add():
    arguments = ("--network", "edsr", "--bits", "2", "--method", "lsq", "--method", "ddtb", "--json")
    done = accounting(*arguments)
    assert done.returncode == 0, done.stderr
    entries = json.loads(done.stdout)["networks"]
    assert [(entry["method"], round(entry["storage_kwords"], 1)) for entry in entries] == [
        ("lsq", 411.7),
        ("ddtb", 413.4),
    ]


def test_an_unknown_network_is_a_usage_error():
    done = accounting("--network", "vgg")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no network 'vgg': known by name are edsr, rdn, srresnet, swinir")
    assert len(done.stderr.splitlines()) == 1
