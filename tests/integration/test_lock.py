"""CI's hashed requirements: what constraints.txt pins, complete, each with a hash; and what makes them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from odm_deploy.errors import InputError
from tests.conftest import REPOSITORY
from tests.tool_modules import load_tool

lock = load_tool("lock")
sbom = load_tool("sbom")
TEXT = (REPOSITORY / "requirements-ci.txt").read_text()


def without_build(version: str) -> str:
    return version.partition("+")[0]


def test_versions_are_those_of_the_constraints():
    locked = lock.pins_in(TEXT)
    constrained = lock.pins_in((REPOSITORY / "constraints.txt").read_text())
    other = {name: (locked[name], constrained[name]) for name in locked.keys() & constrained.keys()}
    assert {name: pair for name, pair in other.items() if without_build(pair[0]) != pair[1]} == {}
    # A package that nobody pinned would be another one tomorrow.
    assert set(locked) <= set(constrained)


def test_whatever_the_tests_need_is_in_it():
    locked = lock.pins_in(TEXT)
    missing = {name: found.version for name, found in sbom.needed("odm-deploy").items() if name not in locked}
    # Extras that CI does not install, and what older Pythons need.
    assert set(missing) <= {"spandrel", "torchvision", "einops", "nvidia-cublas", "setuptools", "pip", "wheel", "tomli"}


def test_every_line_has_a_hash():
    entries = re.findall(r"^[a-z0-9.-]+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}$", TEXT, flags=re.MULTILINE)
    assert len(entries) == len(lock.pins_in(TEXT)) > 60


def test_pip_refuses_another_file_than_the_one_that_was_locked(tmp_path):
    """pip itself reads the file, and compares: here with a hash that nothing has."""
    (tmp_path / "click-8.5.1-py3-none-any.whl").write_bytes(b"another one")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(lock.to_requirements({"click": ("8.5.1", "0" * 64)}))
    words = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", tmp_path, "--require-hashes"]
    target = ("--no-deps", "--target", tmp_path / "site", "-r", requirements)
    done = subprocess.run([*words, *target], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "site").exists()


def test_a_package_without_a_hash_is_refused():
    entry = {
        "metadata": {"name": "click", "version": "1"},
        "download_info": {"url": "https://example.org", "vcs_info": {}},
    }
    with pytest.raises(InputError, match="click 1 comes without a hash"):
        lock.hashes_of({"install": [entry]})
    entry["download_info"] = {"url": "x", "archive_info": {"hashes": {"sha256": "ab"}}}
    own = {"metadata": {"name": "odm_deploy", "version": "1"}, "download_info": {"url": "x", "dir_info": {}}}
    assert lock.hashes_of({"install": [entry, own]}) == {"click": ("1", "ab")}
