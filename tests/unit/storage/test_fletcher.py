"""HDF5's own checksum of chunks: beside its naive twin, and beside what HDF5 stores."""

import h5py
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringtmp.checkpoint import format as checkpoint
from ringtmp.storage.fletcher import fletcher32


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**32), st.sampled_from(["any", "zeros", "ones", "few"]))
def test_fletcher32(n, seed, kind):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**16, n, dtype=np.uint16)
    if kind == "zeros":
        words[:] = 0
    elif kind == "ones":
        words[:] = 0xFFFF
    elif kind == "few":
        words[rng.random(n) < 0.99] = 0
    assert fletcher32(words) == naive.fletcher32(words.tobytes())


@pytest.mark.parametrize("shape", [(1,), (300,), (2621, 1001), (3, 2, 5), (2, 300000)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_chunks_are_as_hdf5_writes_them(tmp_path, shape, dtype):
    """Byte for byte, the last and shorter one too; and HDF5 reads them, and finds a flipped bit."""
    values = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    with h5py.File(tmp_path / "ours.h5", "w") as ours, h5py.File(tmp_path / "theirs.h5", "w") as theirs:
        checkpoint._store(ours, "a", values)
        theirs.create_dataset("a", data=values, fletcher32=True, chunks=checkpoint._chunks(values))
        mine, other = ours["a"].id, theirs["a"].id
        assert mine.get_num_chunks() == other.get_num_chunks()
        for n in range(mine.get_num_chunks()):
            place = other.get_chunk_info(n).chunk_offset
            assert mine.read_direct_chunk(place) == other.read_direct_chunk(place)
        where = mine.get_chunk_info(0).byte_offset
    with h5py.File(tmp_path / "ours.h5") as ours:
        np.testing.assert_array_equal(ours["a"][...], values)
    content = bytearray((tmp_path / "ours.h5").read_bytes())
    content[where + 1] ^= 4
    (tmp_path / "ours.h5").write_bytes(content)
    with h5py.File(tmp_path / "ours.h5") as ours, pytest.raises(OSError, match="filter returned failure"):
        ours["a"][...]
