import pickle
import struct

import numpy as np
import pytest
import torch

from odm_deploy import torch_contents
from odm_deploy.errors import InputError
from odm_deploy.torch_files import read_torch_file


def read(content, folder, **options):
    torch.save(content, folder / "w.pt", **options)
    return read_torch_file(folder / "w.pt")


@pytest.mark.parametrize("kind", ["f4", "f2", "f8", "i1", "u1", "i8", "u2", "?", "c8"])
@pytest.mark.parametrize("old", [True, False])
def test_arrays_are_read_as_tensors_bit_for_bit(tmp_path, kind, old):
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    by_columns, few, none = np.asfortranarray(array), array[0, 0], array[:, :0]
    if kind == "c8":
        with pytest.raises(InputError, match=r"its tensor a is complex"):
            read({"a": array}, tmp_path)
        return
    content = {"a": array, "nested": {"b": by_columns, "list": [few, none]}, "again": array}
    loaded = read(content, tmp_path, _use_new_zipfile_serialization=not old)
    for got, wanted in (
        (loaded["a"], array),
        (loaded["nested"]["b"], array),
        (loaded["nested"]["list"][0], few),
        (loaded["nested"]["list"][1], none),
    ):
        assert got.numpy().dtype == wanted.dtype
        assert np.array_equal(got.numpy(), wanted)
    assert loaded["again"] is loaded["a"]


def test_an_array_alone_is_a_tensor(tmp_path):
    assert torch.equal(read(np.ones((2, 2), np.float32), tmp_path), torch.ones(2, 2))


def test_numbers_are_those_of_python(tmp_path):
    content = {"psnr": np.float64(27.25), "epoch": np.int64(3), "best": np.bool_(True), "w": torch.ones(1)}
    loaded = read(content, tmp_path)
    assert {key: type(loaded[key]) for key in ("psnr", "epoch", "best")} == {"psnr": float, "epoch": int, "best": bool}
    assert loaded["psnr"] == 27.25
    assert loaded["epoch"] == 3


def test_state_of_random_numbers_beside_weights_does_not_matter(tmp_path):
    loaded = read({"w": torch.ones(2), "random": np.random.RandomState(0).get_state()}, tmp_path)
    assert torch.equal(loaded["w"], torch.ones(2))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.array([1, "a", None], object), "type 'O8', which are no numbers"),
        (np.array(["a"]), "type 'U1'"),
        (np.array(["2020-01-01"], "M8[D]"), "type 'M8'"),
        (np.zeros(2, [("a", "f4"), ("b", "i4")]), "type 'V8'"),
        (np.zeros(2, ">f4"), "byte order"),
        (np.datetime64("2020-01-01"), "type 'M8'"),
    ],
)
def test_other_arrays_are_refused_for_what_they_are(tmp_path, content, reason):
    with pytest.raises(InputError, match=reason):
        read({"w": content}, tmp_path)


class Call:
    """Pickles as a call of what numpy calls `name`, with a state that is given to its result."""

    def __init__(self, name, arguments, state=None):
        self.name, self.arguments, self.state = name, arguments, state

    def __reduce__(self):
        module, _, attribute = self.name.rpartition(".")
        function = getattr(__import__(module, fromlist=["x"]), attribute)
        return (function, self.arguments) if self.state is None else (function, self.arguments, self.state)


RECONSTRUCT, SCALAR = (f"numpy._core.multiarray.{name}" for name in ("_reconstruct", "scalar"))
FLOAT = np.dtype("f4")


@pytest.mark.parametrize(
    "content",
    [
        Call(RECONSTRUCT, (np.ndarray, (0,), b"b")),
        Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (2**40,), FLOAT, False, b"1234")),
        Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (-1, -1), FLOAT, False, b"1234")),
        Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, ("a",), FLOAT, False, b"1234")),
        Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1.0,), FLOAT, False, b"1234")),
        Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,) * 100, FLOAT, False, b"1234")),
        Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), "f4", False, b"1234")),
        Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), FLOAT, False, [1])),
        Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1,)),
        Call(SCALAR, (FLOAT, b"12")),
        Call(SCALAR, ("f4", b"1234")),
        Call("numpy.dtype", ("f4", False, True), (3, "<", (FLOAT, (2,)), None, None, -1, -1, 0)),
        Call("_codecs.encode", ("x" * 9, "zlib_codec")),
        Call("_codecs.encode", (3, "latin1")),
        Call("numpy.ndarray", ((2**30,),)),
        Call("numpy.memmap", ("/etc/hostname",)),
    ],
)
def test_hostile_arrays_are_refused_in_a_line(tmp_path, content):
    with pytest.raises(InputError) as caught:
        read({"w": content}, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_many_arrays_of_the_same_bytes_take_no_more_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_contents, "_BYTES", 1 << 20)
    data = bytes(1 << 20)
    arrays = [Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1 << 18,), FLOAT, False, data)) for _ in range(100)]
    with pytest.raises(InputError, match="it repeats itself"):
        read(arrays, tmp_path)


def test_lists_that_hold_themselves_end(tmp_path):
    ring = [np.ones(3, np.float32)]
    ring.append((ring,))
    with pytest.raises(InputError, match="holds itself"):
        read({"w": ring}, tmp_path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_that_torch_did_not_write_is_told(tmp_path, protocol):
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"w": np.ones(3, np.float32)}, protocol))
    with pytest.raises(InputError, match=r"Python's own module writes it, .*re-save it with torch\.save"):
        read_torch_file(tmp_path / "w.pth")


def test_numpys_own_files_are_told(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    np.save(tmp_path / "w.npy", np.ones(3))
    with pytest.raises(InputError, match=r"is not a torch file: it is an archive of a\.npy"):
        read_torch_file(tmp_path / "w.npz")
    with pytest.raises(InputError, match=r"is not a torch file: it is an archive of numpy's"):
        read_torch_file(tmp_path / "w.npy")
    (tmp_path / "empty.pth").write_bytes(b"PK\5\6" + struct.pack("<18x"))
    with pytest.raises(InputError, match=r"is not a torch file: it is an empty archive"):
        read_torch_file(tmp_path / "empty.pth")
