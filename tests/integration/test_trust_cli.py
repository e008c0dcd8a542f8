"""A model.pt of somebody else's network, from float weights to a proof: nothing runs that was not named."""

from __future__ import annotations

import sys

import pytest
import torch

from odm_deploy.cli.quantize import command
from odm_deploy.terminal import run
from tests.command_line import run_cli
from tests.foreign_networks import BUILT, seeded

BUILDER = "tests.foreign_networks:Enlarger"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, samples):
    """What `python -m calibration --network pkg.module:Name` writes."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.save(seeded(features=6).state_dict(), folder / "weights.pt")
    arguments = [
        "--network",
        BUILDER,
        "--set",
        "features=6",
        "--set",
        "input_range=1",
        "--scale",
        "2",
        "--bits",
        "8",
        "--max-images",
        "2",
    ]
    call = ["calibration", folder / "weights.pt", *arguments, "--images", samples / "HR", "-o", folder / "model.pt"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(each) for each in call])
        with pytest.raises(SystemExit) as ended:
            run(command, "python -m calibration")
    assert ended.value.code == 0
    return folder / "model.pt"


@pytest.mark.parametrize(
    "verb",
    [
        ("inspect",),
        ("export", "--no-engine", "-o", "{folder}/bundle"),
        ("eval", "--dataset", "{set}"),
    ],
    ids=lambda verb: verb[0],
)
def test_every_verb_that_opens_it_asks_for_trust(verb, checkpoint, tiny_set, tmp_path):
    name, *options = (part.format(folder=tmp_path, set=tiny_set) for part in verb)
    BUILT.clear()
    refused = run_cli(name, checkpoint, *options)
    assert (refused.code, BUILT) == (2, [])
    assert refused.stderr.count("\n") == 1
    assert f"add --trust {BUILDER}" in refused.stderr
    accepted = run_cli(name, checkpoint, *options, "--trust", BUILDER)
    assert (accepted.code, BUILT) == (0, ["Enlarger"])
    # Trust ends with the command.
    assert run_cli(name, checkpoint, *options).code == 2


def test_the_bundle_is_proven_against_it(checkpoint, tiny_set, tmp_path):
    bundle = tmp_path / "bundle"
    assert run_cli("export", checkpoint, "--no-engine", "-o", bundle, "--trust", BUILDER).code == 0
    arguments = ("verify", bundle, "--images", tiny_set / "LR_bicubic/X2", "--runtime", "onnxruntime", "--json")
    assert run_cli(*arguments).code == 2
    proof = run_cli(*arguments, "--trust", BUILDER)
    assert proof.code == 0, proof.stderr
    assert proof.document["passed"] is True


def test_a_path_of_another_form_is_refused(checkpoint):
    outcome = run_cli("inspect", checkpoint, "--trust", "tests/foreign_networks.py")
    assert outcome.code == 2
    assert "package.module:Name" in outcome.stderr
