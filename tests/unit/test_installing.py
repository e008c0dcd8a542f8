"""The command that adds an extra is one that pip carries out, for each way to install the package."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from odm_deploy.installing import install_extra
from tests.conftest import REPOSITORY


def test_running_from_a_clone_names_the_clone() -> None:
    assert install_extra("cpu") == f"pip install -e '{REPOSITORY}[cpu]'"
    assert install_extra("export", "cpu").endswith("[export,cpu]'")


def installed(site: Path, origin: dict[str, object] | None) -> str:
    """What the package says in a folder that it lies in as pip would have put it there, from this origin."""
    (site / "odm_deploy").mkdir(parents=True)
    (site / "odm_deploy" / "__init__.py").touch()
    shutil.copy(REPOSITORY / "odm_deploy" / "installing.py", site / "odm_deploy")
    about = site / "odm_deploy-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.4\nName: odm-deploy\nVersion: 0.1.0\nProvides-Extra: cpu\n")
    if origin is not None:
        (about / "direct_url.json").write_text(json.dumps(origin))
    code = "import sys; sys.path[:0] = [sys.argv[1]]; import odm_deploy.installing as i; print(i.install_extra('cpu'))"
    # Not this process's paths: they lead to the clone.
    command = [sys.executable, "-I", "-S", "-c", code, str(site)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.mark.parametrize(
    "origin",
    [
        None,
        {"url": "file:///gone/odm_deploy-0.1.0-py3-none-any.whl", "archive_info": {}},
        {"url": "file:///gone/clone", "dir_info": {}},
        {"url": "https://example.org/odm-deploy.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}},
        {},
    ],
    ids=["index", "wheel", "clone that is gone", "git", "damaged"],
)
def test_an_installed_copy_is_asked_for_its_own_extras(origin: dict[str, object] | None, tmp_path: Path) -> None:
    assert installed(tmp_path / "site", origin) == "pip install 'odm-deploy[cpu]'"


def test_a_copy_installed_from_a_clone_names_the_clone(tmp_path: Path) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    command = installed(tmp_path / "site", {"url": clone.as_uri(), "dir_info": {}})
    assert shlex.split(command) == ["pip", "install", f"{clone}[cpu]"]


def test_pip_adds_an_extra_to_an_installed_wheel_without_an_index(tmp_path: Path) -> None:
    """A wheel of the same shape, so that neither a build backend nor an index is needed."""
    wheel = tmp_path / "odm_deploy-0.1.0-py3-none-any.whl"
    about = "odm_deploy-0.1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("odm_deploy_stand_in.py", "")
        archive.writestr(
            f"{about}/METADATA",
            "Metadata-Version: 2.1\nName: odm-deploy\nVersion: 0.1.0\nProvides-Extra: serve\n"
            "Requires-Dist: never-installed-anywhere; extra == 'serve'\n",
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=120)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "-q", "--no-index"]
    subprocess.run([*pip, wheel], check=True, timeout=120)
    asked = subprocess.run([*pip, "odm-deploy[serve]"], capture_output=True, text=True, check=False, timeout=120)
    # The package itself was found where it is installed, and its extra was read: only that is missing here.
    assert "No matching distribution found for never-installed-anywhere" in asked.stderr
    assert "from odm-deploy" not in asked.stderr.replace("from odm-deploy[serve]", "")
