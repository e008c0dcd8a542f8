"""Plans of graphs that exist in memory only: a twin to time against, a graph cut open to look inside."""

from __future__ import annotations

import tempfile
from pathlib import Path

from onnx import ModelProto

from odm_deploy.building.build import build_engine
from odm_deploy.building.options import BuildOptions
from odm_deploy.bundle.manifest import ONNX_FILE, PLAN_FILE


def build_plan(graph: ModelProto, options: BuildOptions) -> bytes:
    """Build a graph; returns the plan and leaves no file.

    Raises:
        BuildError: the builder refused the graph, crashed or ran out of time.
        MissingError: the builder cannot build here.
    """
    with tempfile.TemporaryDirectory(prefix="odm-deploy-") as folder:
        onnx_path, plan_path = Path(folder) / ONNX_FILE, Path(folder) / PLAN_FILE
        onnx_path.write_bytes(graph.SerializeToString())
        build_engine(onnx_path, plan_path, options)
        return plan_path.read_bytes()
