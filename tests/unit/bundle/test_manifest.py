"""The bundle's side-car: what is written is read, unknown keys survive, damage is one clear line."""

from __future__ import annotations

import json

import pytest

from odm_deploy.bundle.manifest import FORMAT, MANIFEST_FILE, VERSION, Manifest, read_manifest
from odm_deploy.errors import InputError

MANIFEST = Manifest(
    network={"name": "edsr", "scale": 4, "config": {"features": 8}},
    checkpoint={"path": "model.pt", "sha256": "ab"},
    onnx={"sha256": "cd", "opset": 20},
    receptive_radius_px=8,
    layers={"body.0": {"grid": {"scale": 0.1, "zero_point": 3, "bits": 4}, "weight_bits": 4}},
    engine={"flavour": "tensorrt_rtx", "layers": []},
    created_by="odm-deploy 0.1.0",
)


def edit(folder, **changes):
    path = folder / MANIFEST_FILE
    document = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del document[key]
        else:
            document[key] = value
    path.write_text(json.dumps(document))


def test_what_is_written_is_read(tmp_path):
    assert MANIFEST.write(tmp_path) == tmp_path / MANIFEST_FILE
    assert read_manifest(tmp_path) == MANIFEST
    assert read_manifest(tmp_path).scale == 4


def test_format_and_version_come_first(tmp_path):
    document = json.loads(MANIFEST.write(tmp_path).read_text())
    assert list(document)[:3] == ["format", "version", "created_by"]
    assert (document["format"], document["version"]) == (FORMAT, VERSION)
    assert "extra" not in document


def test_keys_of_other_programs_survive_rewriting(tmp_path):
    MANIFEST.write(tmp_path)
    edit(tmp_path, latency_ms={"p50": 3.5})
    read_manifest(tmp_path).write(tmp_path)
    assert json.loads((tmp_path / MANIFEST_FILE).read_text())["latency_ms"] == {"p50": 3.5}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format": "something else"}, "format"),
        ({"format": None}, "format"),
        ({"version": None}, "version"),
        ({"version": 99}, "its version is 99, this program reads 1"),
        ({"onnx": None}, "onnx"),
        ({"network": {"name": "edsr"}}, "scale"),
        ({"network": {"scale": "four"}}, "four"),
        ({"network": 4}, "TypeError"),
    ],
)
def test_damage_is_one_line_with_the_reason(tmp_path, changes, why):
    MANIFEST.write(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(InputError, match=why) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe\x00", b'"text"'])
def test_something_that_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network", "edsr"),
        ("network", {"scale": []}),
        ("checkpoint", 3),
        ("onnx", "x"),
        ("layers", [1]),
        ("layers", {"head.0": {}}),
        ("layers", {"head.0": {"weight_bits": "4", "grid": {"bits": 4}}}),
        ("layers", {"head.0": {"weight_bits": 4, "grid": 7}}),
        ("exact", True),
        ("engine", "x" * 5000),
        ("cpu_onnx", {"runtimes": True}),
        ("cpu_onnx", {"runtimes": [1]}),
        ("receptive_radius_px", "8"),
        ("receptive_radius_px", -1),
    ],
)
def test_a_value_of_another_kind_is_one_short_line(tmp_path, key, value):
    MANIFEST.write(tmp_path)
    edit(tmp_path, **{key: value})
    with pytest.raises(InputError, match="is damaged") as caught:
        read_manifest(tmp_path)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_no_bundle_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match=r"it has no manifest\.json; make one with: odm-deploy export"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="there is no such directory"):
        read_manifest(tmp_path / "missing")
    (tmp_path / "net.onnx").write_bytes(b"a network")
    with pytest.raises(InputError, match=r"it is a file, .*odm-deploy quantize FILE --images DIR --export DIR"):
        read_manifest(tmp_path / "net.onnx")


def test_bits_of_quantized_layers_are_told_and_of_others_none() -> None:
    assert MANIFEST.bits_of("body.0") == (4, 4)
    assert MANIFEST.bits_of("head.0") is None
