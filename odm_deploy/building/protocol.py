"""What `build_engine` and the process of the builder say to each other.

* stdin: one JSON object, the fields of `BuildRequest`.
* stdout: one JSON object a line, each with an `event`: `phase`, `step` and `finished` while building, and last `done`
  or `failed`.
* the log file: every line the builder logs, flushed as it comes, so that a crash leaves the builder's last words.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from odm_deploy.building.options import BuildOptions
from odm_deploy.graphs.input_shapes import InputShapes


@dataclass(frozen=True)
class BuildRequest:
    """All a child needs to know to build one engine."""

    onnx: str
    plan: str
    """Where to write the plan; the parent renames it into place."""
    log: str
    options: BuildOptions
    """How to build it; `builder` is named, and every option is one it has."""

    @property
    def builder(self) -> str:
        """`tensorrt` or `tensorrt_rtx`; also the name of its Python module."""
        assert self.options.builder is not None
        return self.options.builder

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> BuildRequest:
        """Inverse of `to_json`."""
        document = json.loads(text)
        options = document.pop("options")
        shapes = InputShapes(**{name: tuple(shape) for name, shape in options.pop("shapes").items()})
        cache = options.pop("timing_cache")
        return cls(**document, options=BuildOptions(shapes=shapes, timing_cache=cache and Path(cache), **options))


class Channel:
    """Writes events as JSON lines. Reports to a parent that is gone are dropped: the build is being cancelled."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.open = True

    def send(self, event: str, **values: Any) -> None:
        """Send one event."""
        try:
            self._stream.write(json.dumps({"event": event, **values}) + "\n")
            self._stream.flush()
        except OSError:
            self.open = False
