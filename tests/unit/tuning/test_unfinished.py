"""Training that a kill cut off goes on to the same bits; of other work nothing is gone on from."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from odm_deploy.errors import InputError, UsageError
from odm_deploy.quantization.policy import LayerBits, QuantizationPolicy
from odm_deploy.quantization.post_training import calibrate
from odm_deploy.tuning import finetuning
from odm_deploy.tuning.finetuning import Budget, fine_tune
from odm_deploy.tuning.unfinished import Unfinished
from tests.factories import random_images, tiny_network

REPOSITORY = Path(__file__).resolve().parents[3]


def tuned(steps, unfinished=None, **more):
    """A model fine-tuned from the same beginning, whichever process asks."""
    torch.set_num_threads(1)
    network = tiny_network()
    images = [torch.from_numpy(random_images(56, 56, seed=seed)) for seed in range(3)]
    model, _ = calibrate(network, images, QuantizationPolicy(LayerBits(3, 3)))
    return fine_tune(network, model, images, Budget(steps=steps), unfinished=unfinished, **more)


def killed_at(result, hundredth):
    """Runs in a process of its own, and ends it the hard way."""
    import os

    finetuning.KEPT_EVERY_S = 0.0

    def deadly(items, total, stage=""):
        for number in items:
            if number == hundredth:
                os.kill(os.getpid(), signal.SIGKILL)
            yield number

    tuned(20, Unfinished(Path(result), {"a": 1}), track=deadly)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    result = tmp_path / "model.pt"
    code = f"from tests.unit.tuning.test_unfinished import killed_at; killed_at({str(result)!r}, 50)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    said: list[str] = []
    unfinished = Unfinished(result, {"a": 1})
    tracked: list[object] = []

    def track(items, total, stage=""):
        done = [*items]
        tracked.extend([len(done), total, stage])
        return iter(done)

    again = tuned(20, unfinished, say=said.append, track=track)
    # What was done before would make the rest look as fast as nothing.
    assert tracked == [50, 50, "the last 50 % of fine-tuning"]
    assert said == [f"going on behind the 10 steps of fine-tuning in {unfinished.path}"]
    whole = tuned(20)
    assert again.steps == whole.steps == 20
    assert again.first_loss == whole.first_loss
    state, expected = (each.model.network.state_dict() for each in (again, whole))
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert [layer.grid for layer in again.model.layers.values()] == [
        layer.grid for layer in whole.model.layers.values()
    ]
    # All of it is kept until the model is written.
    assert unfinished.path.exists()
    unfinished.remove()
    assert list(tmp_path.iterdir()) == []


def test_files_of_other_work_and_damaged_ones_are_refused(tmp_path):
    result = tmp_path / "model.pt"
    assert Unfinished(result, {}).load() is None
    mine = Unfinished(result, {"minutes": 5, "weights": "x"})
    mine.save({"seconds": 3.0, "layers": {"a": torch.ones(2)}})
    found = Unfinished(result, {"weights": "x", "minutes": 5}).load()
    assert found is not None
    assert found["seconds"] == 3.0
    with pytest.raises(UsageError, match="holds training of another call"):
        Unfinished(result, {"minutes": 6, "weights": "x"}).load()
    torch.save([1], mine.path)
    with pytest.raises(InputError, match=r"is damaged.*remove it to start anew"):
        mine.load()
    for content, why in ((b"", "the file is empty"), (b"PK junk", "")):
        mine.path.write_bytes(content)
        with pytest.raises(InputError, match=rf"is damaged: .*{why}.*; remove it to start anew"):
            mine.load()
