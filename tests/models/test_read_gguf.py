import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.errors import DataError
from luthier.models.read_gguf import read_header

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.standard_normal((6, 256)).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A file with a value of every metadata type and a tensor of several formats."""
    made = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(str(made), "llama")
    writer.add_string("a.text", "grüße 请")
    writer.add_uint8("a.u8", 250)
    writer.add_int8("a.i8", -5)
    writer.add_uint16("a.u16", 65000)
    writer.add_int16("a.i16", -30000)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -2_000_000_000)
    writer.add_uint64("a.u64", 2**63)
    writer.add_int64("a.i64", -(2**62))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.yes", True)
    writer.add_array("a.words", ["one", "", "zwei"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_tensor("f32", WEIGHTS)
    writer.add_tensor("f16", WEIGHTS.astype(np.float16))
    for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "BF16"):
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quants.quantize(WEIGHTS, kind), raw_dtype=kind)
    writer.add_tensor("vector", WEIGHTS[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def test_metadata_is_what_the_reference_reader_reads(path):
    header = read_header(path)
    reference = gguf.GGUFReader(str(path))
    fields = {k: f.contents() for k, f in reference.fields.items() if not k.startswith("GGUF.")}
    assert dict(header.metadata) == fields
    assert header.metadata["a.text"] == "grüße 请" and header.metadata["a.words"] == ["one", "", "zwei"]
    assert header.version == 3


def test_tensors_are_what_the_reference_dequantises(path):
    header = read_header(path)
    reference = {t.name: t for t in gguf.GGUFReader(str(path)).tensors}
    assert set(header.tensors) == set(reference)
    for name, tensor in reference.items():
        wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        got = header.read(name)
        assert got.dtype == np.float32 and got.flags.writeable
        np.testing.assert_array_equal(got, wanted.reshape(got.shape))
    assert header.read("vector").shape == (256,)
    np.testing.assert_array_equal(header.read("f32"), WEIGHTS)
    np.testing.assert_allclose(header.read("Q8_0"), WEIGHTS, atol=0.02)


def test_the_quantization_is_the_one_of_most_weights(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "q.gguf"), "llama")
    kind = gguf.GGMLQuantizationType.Q4_1
    writer.add_tensor("big", gguf.quants.quantize(np.ones((64, 64), np.float32), kind), raw_dtype=kind)
    writer.add_tensor("small", np.ones((8, 8), np.float32))
    writer.add_tensor("norm", np.ones(9999, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_header(tmp_path / "q.gguf").quantization == "Q4_1"


def test_a_file_cut_short_anywhere_is_a_data_error_that_names_it(path, tmp_path):
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 1200, 7), *range(1200, len(whole), 997), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.gguf"):
            header = read_header(cut)
            assert sum(t.size_bytes for t in header.tensors.values()) > length, "accepted a file that is not whole"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read|not a GGUF|damaged"),
        (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version must be 2 or 3; got 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 10**12), "metadata pairs"),
        (b"GGUF" + struct.pack("<IQQ", 3, 10**12, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), "text of"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**60), "array of"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 77), "value type 77"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<I", 99), "99 dimensions"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 32, 9999, 0),
            "format that is not known",
        ),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 33, 8, 0), "multiple of 32"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 32, 0, 2**50), "ends at byte"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + struct.pack("<I", 77), "damaged"),
    ],
)
def test_absurd_headers_are_refused_before_anything_is_allocated(tmp_path, content, said):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as raised:
        read_header(path)
    assert "bad.gguf" in str(raised.value)


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"none\.gguf"):
        read_header(tmp_path / "none.gguf")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_header_never_ends_in_another_error(path, tmp_path, changes):
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place] = value
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content)
    try:
        header = read_header(damaged)
    except DataError:
        return
    assert all(t.offset + t.size_bytes <= len(content) for t in header.tensors.values())
