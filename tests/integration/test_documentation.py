"""The pages: links lead somewhere, named files exist, blocks marked `<!-- run -->` do what they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command_line import without_progress
from tests.conftest import REPOSITORY
from tests.video_clips import write_clip

PAGES = sorted(
    [
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / name for name in ("tools/cpp/README.md", "tools/demo/MODEL_CARD.md")),
        REPOSITORY / "tests/data/samples/README.md",
    ]
)
EXPORT = "odm-deploy export tools/demo/edsr_baseline_x4_w4a4.pt -o bundle --no-engine"
ON_DEMAND = "ODM_RUN_LONG_BLOCKS" in os.environ
"""Whether to run the blocks that take minutes, or files that are not in the repository, as well."""
RUNNABLE = ("console", "python", "sh")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


@dataclass(frozen=True)
class Block:
    """A fenced block and the comment on the line before it."""

    language: str
    text: str
    comment: str

    @property
    def is_run(self) -> bool:
        return self.comment.startswith("run") and (not self.comment.startswith("run on demand") or ON_DEMAND)

    @property
    def shows_output(self) -> bool:
        return self.comment == "run"


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)
    return [Block(language, text, comment) for comment, language, text in found]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@every_page
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@every_page
def test_files_named_in_the_text_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        pytest.skip("history names files that are gone")
    named = re.findall(r"\b(?:tools|tests|training|calibration|odm_deploy)/[\w./-]+\.\w+", page.read_text())
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


@every_page
def test_pages_name_no_folder_of_one_machine(page: Path) -> None:
    assert re.findall(r"(?<![\w.~-])/(?:home|root|work|tmp|Users|mnt)/.*", page.read_text()) == []


@every_page
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    runnable = [block for block in blocks(page) if block.language in RUNNABLE]
    assert [block for block in runnable if not re.match(r"run\b|not run: \w", block.comment)] == []


def test_the_page_of_commands_is_what_help_prints() -> None:
    # In a process of its own: click remembers the help options of a command that another test has called alone.
    tool = [sys.executable, REPOSITORY / "tools/cli_reference.py"]
    printed = subprocess.run(tool, capture_output=True, text=True, check=True, timeout=120).stdout
    assert (REPOSITORY / "docs/cli.md").read_text() == printed, "python tools/cli_reference.py > docs/cli.md"


def test_on_a_package_index_no_link_of_the_readme_is_relative() -> None:
    """The build changes them by the patterns in pyproject.toml."""
    text = (REPOSITORY / "README.md").read_text()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    for change in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    assert [target for target in targets if not target.startswith("https://")] == []
    assert re.search(r"!\[.*\]\(https://raw\.githubusercontent\.com/.*\.png\)", text)


def test_contributing_lists_the_folders_that_exist() -> None:
    table = set(re.findall(r"^\| `([\w/.]+)`", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.M))
    assert [name for name in table if not (REPOSITORY / name).exists()] == []
    packages = {f"odm_deploy/{path.parent.name}/" for path in (REPOSITORY / "odm_deploy").glob("*/__init__.py")}
    assert packages - table == set()


class Workspace:
    """A folder with the repository's files in it, where the blocks of all pages run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("tools", "tests", "training"):
            (folder / name).symlink_to(REPOSITORY / name)
        # What a user would bring along: a video, photos, and weights where there are some.
        write_clip(folder / "clip.mp4")
        (folder / "photos").symlink_to(REPOSITORY / "tests/data/samples/HR")
        (folder / "weights").symlink_to(os.environ.get("ODM_WEIGHTS") or REPOSITORY.parent / "shared/weights")
        self._outputs: dict[str, tuple[int, str]] = {}

    def run(self, command: str) -> tuple[int, str]:
        """Exit code and all output of a shell command; one that ran before is not run again."""
        if command not in self._outputs:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            python_path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(
                command,
                shell=True,
                cwd=self.folder,
                env={**os.environ, "PATH": path, "PYTHONPATH": python_path, "COLUMNS": "120"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            self._outputs[command] = done.returncode, without_progress(done.stdout)
        return self._outputs[command]

    def run_python(self, text: str) -> None:
        """Run a block, or keep it as a module where its first line is the module's name."""
        if name := re.match(r"# (\w+\.py)\n", text):
            (self.folder / name[1]).write_text(text)
            return
        (self.folder / "block.py").write_text(text)
        code, output = self.run(f"python block.py  # {hash(text)}")
        assert code == 0, output


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("documentation"))
    code, output = made.run(EXPORT)
    assert code == 0, output
    return made


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block with the output that the page shows."""
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        match = re.fullmatch(r"((?:[^\n]*\\\n)*[^\n]*\n)(.*)", part, re.S)
        assert match is not None
        command, shown = match.groups()
        yield command.strip(), shown


def pattern(shown: str) -> str:
    """A regular expression of what is shown: a line `...` stands for any lines, seconds may differ."""
    lines = re.sub(r"^\.\.\.\n", "\0", shown, flags=re.M)
    return re.sub(r"\d+(?:\\\.\d+)?\\ s\\ ", r"[\\d.]+\\ s\\ ", re.escape(lines)).replace("\0", "(?:.*\n)*?")


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.is_run for block in blocks(page))],
    ids=lambda page: str(page.relative_to(REPOSITORY)),
)
def test_blocks_do_what_the_page_shows(workspace: Workspace, page: Path) -> None:
    for block in blocks(page):
        if not block.is_run:
            continue
        if block.language == "python":
            workspace.run_python(block.text)
            continue
        for command, shown in commands(block.text):
            code, output = workspace.run(command)
            assert (code == 0) == (not shown.startswith("error:")), f"{command}\n{output}"
            if shown and block.shows_output:
                assert re.fullmatch(pattern(shown), output), f"{command}\n{output}"
