"""The layers that docs/architecture.md draws are those of the code: imports run one way."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import REPOSITORY


def drawn_layers() -> dict[str, int]:
    """Rooms of the drawing, such as `bundle` -> the line they stand on."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    drawing = page.split("```text\n", 1)[1].split("```", 1)[0]
    lines = [line.split("(")[0] for line in drawing.splitlines()]
    return {room.strip(): index for index, line in enumerate(lines) for room in line.split(",")}


def room_of(module: str) -> str:
    """`odm_deploy.bundle.manifest` -> `bundle`, `training.loop.run` -> `training`."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "odm_deploy" else package


def imports_of(file: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    return {node.module for node in nodes if node.module and node.level == 0}


def test_every_room_is_drawn_and_imports_from_rooms_above_it_only() -> None:
    layers = drawn_layers()
    # The package's lazy face leads to everything in it.
    layers[""] = layers["cli"]
    ours = ("odm_deploy", "training", "calibration", "tools")
    files = [file for place in ours for file in (REPOSITORY / place).rglob("*.py")]
    wrong: list[str] = []
    for file in files:
        place = file.relative_to(REPOSITORY).with_suffix("")
        if place.name in ("__init__", "__main__") and place.parent.name == "odm_deploy":
            # The package's lazy face, and the command's other name.
            continue
        room = room_of(".".join(place.parts))
        for module in imports_of(file):
            other = room_of(module)
            if module.split(".")[0] in ours and other != room and not layers[other] < layers[room]:
                wrong.append(f"{place} imports {module}")
    assert wrong == []
