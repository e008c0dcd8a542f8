import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from odm_deploy import torch_files
from odm_deploy.errors import InputError
from odm_deploy.torch_files import read_torch_file


class Touch:
    """Unpickling one makes a file: the proof that code ran."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


def test_reads_tensors_and_plain_values(tmp_path):
    content = {"a": torch.arange(3.0), "nested": {"n": 1, "text": "x", "list": [1.5, None, True]}}
    torch.save(content, tmp_path / "ok.pt")
    loaded = read_torch_file(tmp_path / "ok.pt")
    assert torch.equal(loaded.pop("a"), content.pop("a"))
    assert loaded == content


@pytest.mark.parametrize("writer", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))])
def test_code_in_a_file_never_runs(tmp_path, writer):
    victim = tmp_path / "pwned"
    writer({"weights": Touch(victim)}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="refused to read") as caught:
        read_torch_file(tmp_path / "evil.pt")
    assert not victim.exists()
    assert ("it wants to run code: " if writer is torch.save else "which may run code") in caught.value.why
    pickle.loads(pickle.dumps(Touch(victim)))  # the same content, read carelessly, does run
    assert victim.exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    torch.save({"a": torch.randn(1000)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match="damaged or truncated"):
        read_torch_file(tmp_path / "cut.pt")


def test_a_file_with_one_wrong_bit_is_refused(tmp_path):
    """torch reads it, and gives another number."""
    weights = torch.full((1000,), 0.1)
    torch.save({"a": weights}, tmp_path / "whole.pt")
    data = bytearray((tmp_path / "whole.pt").read_bytes())
    data[data.index(weights.numpy().tobytes()) + 2003] ^= 1
    (tmp_path / "damaged.pt").write_bytes(data)
    with pytest.raises(InputError, match="checksum of whole/data/0"):
        read_torch_file(tmp_path / "damaged.pt")


def test_a_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(1000.0)}, tmp_path / "bare.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_torch_file(tmp_path / "bare.pt")["a"], torch.arange(1000.0))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello\n", "is not a torch file"),
        (b"\x89PNG\r\n\x1a\n" * 9, "is not a torch file"),
    ],
)
def test_other_files_are_refused(tmp_path, content, reason):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_torch_file(tmp_path / "x.pt")


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        read_torch_file(tmp_path / "missing.pt")
    with pytest.raises(InputError, match="it is a folder"):
        read_torch_file(tmp_path)


def test_errors_are_one_line(tmp_path):
    torch.save({"weights": Touch(tmp_path / "pwned")}, tmp_path / "evil.pt")
    with pytest.raises(InputError) as caught:
        read_torch_file(tmp_path / "evil.pt")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def deflated(content: object, path: Path, record: str, size: int) -> None:
    """A torch file whose `record` inflates to `size` zeros."""
    stored = io.BytesIO()
    torch.save(content, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, bytes(size) if name.endswith(record) else source.read(name))


@pytest.mark.parametrize("record", ["data/0", "data.pkl", "version"])
def test_records_that_inflate_are_refused_unread(tmp_path, record):
    deflated({"w": torch.zeros(4)}, tmp_path / "bomb.pt", record, 64 << 20)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"its records are compressed: \d{8,9} bytes in a file of \d+"):
        read_torch_file(tmp_path / "bomb.pt")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(1).expand(10**12), "has 1000000000000 elements, stored as 4 bytes"),
        (torch.zeros(3, 3).to_sparse(), "is no plain one: torch.sparse_coo"),
        (torch.zeros(5, device="meta"), "is no plain one"),
        (torch.zeros(5, dtype=torch.complex64), "is complex, and real weights would lose its imaginary part"),
    ],
)
def test_tensors_that_are_more_than_their_file_are_refused(tmp_path, tensor, reason):
    torch.save({"net": [{"w": tensor}]}, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"its tensor net\.0\.w " + reason):
        read_torch_file(tmp_path / "odd.pt")


def doubled(value: object, times: int) -> object:
    """2^times of a value, in as many containers as `times`."""
    for _ in range(times):
        value = {"a": value, "b": [value]} if isinstance(value, dict) else [value, (value,)]
    return value


def nested(times: int) -> list[object]:
    content: list[object] = []
    for _ in range(times):
        content = [content]
    return content


def holding_itself() -> dict[str, object]:
    content: dict[str, object] = {"a": 1}
    content["b"] = [content]
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"config": doubled(1, 40)}, "it repeats itself: .* made of 122 and 0 that are stored"),
        (doubled({"w": torch.zeros(2)}, 40), "it repeats itself"),
        ({f"{index}.weight": torch.zeros(1 << 20).half().expand(2, -1)[0] for index in range(3)}, ""),
        (dict.fromkeys(map(str, range(200)), torch.zeros(1 << 20).half()), "it repeats itself: .* and 2097152 that"),
        (holding_itself(), "b.0 holds itself"),
        (nested(200), "levels of others"),
    ],
    ids=["values", "mappings", "distinct", "tensors", "cycle", "depth"],
)
def test_content_is_bounded_by_what_is_stored(tmp_path, content, reason):
    torch.save(content, tmp_path / "odd.pt")
    if not reason:
        assert len(read_torch_file(tmp_path / "odd.pt")) == len(content)
        return
    with pytest.raises(InputError, match=reason):
        read_torch_file(tmp_path / "odd.pt")


def test_what_is_tied_or_kept_twice_is_read(tmp_path):
    weights = {"body.weight": torch.randn(64, 64, 3, 3), "first.weight": torch.randn(8, 3, 3, 3)}
    tied = weights | {f"body.{index}.weight": weights["body.weight"] for index in range(25)}
    torch.save({"params": tied, "params_ema": tied}, tmp_path / "recursive.pt")
    content = read_torch_file(tmp_path / "recursive.pt")
    assert torch.equal(content["params_ema"]["body.24.weight"], weights["body.weight"])


def test_a_file_that_is_replaced_after_it_was_checked_is_not_read(tmp_path, monkeypatch):
    deflated({"w": torch.zeros(4)}, tmp_path / "bomb.pt", "data/0", 64 << 20)
    torch.save({"w": torch.ones(4)}, tmp_path / "w.pt")
    check = torch_files._check_records

    def check_and_swap(*arguments):
        check(*arguments)
        (tmp_path / "bomb.pt").replace(tmp_path / "w.pt")

    monkeypatch.setattr(torch_files, "_check_records", check_and_swap)
    assert torch.equal(read_torch_file(tmp_path / "w.pt")["w"], torch.ones(4))
