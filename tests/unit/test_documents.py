import os

import pytest

from odm_deploy import documents
from odm_deploy.documents import read_json, read_toml, taken_from
from odm_deploy.errors import InputError, UsageError


def test_documents_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, "ü"]}', encoding="utf-8")
    (tmp_path / "a.toml").write_text("[a]\nb = 1\n")
    assert read_json(tmp_path / "a.json") == {"a": [1, "ü"]}
    assert read_toml(tmp_path / "a.toml") == {"a": {"b": 1}}


@pytest.mark.parametrize("read", [read_json, read_toml])
@pytest.mark.parametrize(
    "content", [b"{", b"a = ", b"\xff\xfe\x00", b"a = " + b"[" * 100_000, b"[" * 100_000, b'{"a": ' * 50_000]
)
def test_what_is_no_document_is_one_short_line(tmp_path, read, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match=r"x is damaged: it is not (JSON|TOML)") as caught:
        read(tmp_path / "x")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_no_key_comes_twice(tmp_path):
    (tmp_path / "x.json").write_text('{"onnx": {"a": 0, "sha256": "00", "sha256": "11"}}')
    with pytest.raises(InputError, match="the key 'sha256' comes twice"):
        read_json(tmp_path / "x.json")


def test_only_regular_files_of_a_sane_length_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("pipe", "no regular file"), (".", "it is a folder"), ("gone", "there is no such file")):
        with pytest.raises(InputError, match=reason):
            read_json(tmp_path / name)
    with pytest.raises(InputError, match="no regular file"):
        read_toml(tmp_path / "/dev/zero")
    (tmp_path / "long.json").write_text("[" + "1," * 100 + "1]")
    monkeypatch.setattr(documents, "LARGEST_BYTES", 100)
    with pytest.raises(InputError, match="refused to read"):
        read_json(tmp_path / "long.json")


@pytest.mark.parametrize(
    "take",
    [
        lambda d: d["gone"],
        lambda d: d["a"].keys(),
        lambda d: int("x" * 10_000),
        lambda d: d["a"] + 1,
        lambda d: 1 / 0,
        lambda d: [][3],
    ],
)
def test_what_breaks_on_a_value_is_the_documents_fault(tmp_path, take):
    with pytest.raises(InputError, match="is damaged") as caught, taken_from(tmp_path / "d.json"):
        take({"a": [1]})
    assert len(str(caught.value)) < 400


def test_deliberate_errors_and_interruptions_pass(tmp_path):
    for kind in (UsageError, KeyboardInterrupt):
        with pytest.raises(kind), taken_from(tmp_path / "d.json"):
            raise kind("meant")
