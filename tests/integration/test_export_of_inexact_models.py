"""A model whose torch form computes something else than its integers is no bundle."""

from __future__ import annotations

import pytest

from odm_deploy import export
from odm_deploy.building.options import BuildOptions
from odm_deploy.checkpoint import save_model
from odm_deploy.errors import InputError
from odm_deploy.lowering.lower import LoweringOptions
from odm_deploy.progress import silent
from odm_deploy.quantization.exact.freeze import freeze_exact
from tests.factories import exact_model


@pytest.mark.parametrize("engine", [None, BuildOptions()], ids=["graphs alone", "with an engine"])
def test_a_model_that_differs_from_its_integers_is_refused_and_nothing_is_left(tmp_path, monkeypatch, engine):
    model = freeze_exact(exact_model())
    save_model(model, tmp_path / "model.pt")
    monkeypatch.setattr(export, "to_pixels", lambda image: 255 - image[0].transpose(1, 2, 0).round().astype("uint8"))
    with pytest.raises(InputError, match="edsr is not exact: torch and integers differ on 'noise'"):
        export.write_bundle(model, tmp_path / "model.pt", tmp_path / "bundle", LoweringOptions(), engine, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
