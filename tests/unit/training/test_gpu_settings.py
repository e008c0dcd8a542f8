"""What `--gpu` stands for."""

from training.__main__ import gpu_settings


def test_what_a_gpu_is_for_depends_on_the_length_of_a_run(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    always = ["run.device=cuda", "run.channels_last=true"]
    assert gpu_settings(600) == [*always, "run.cuda_graphs=true"]
    assert gpu_settings(60_000) == [*always, "run.cuda_graphs=true", "run.compile=true"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert gpu_settings(60_000) == [*always, "run.compile=true"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert gpu_settings(60_000) == always
