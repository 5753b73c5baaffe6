"""Adapters are continued on the weights they were begun on, and on no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.errors import CheckpointError
from train.base_weights import weights_fingerprint


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=3000), place=st.integers(0, 2999), bit=st.integers(0, 7))
def test_any_bit_of_small_files_counts_and_where_they_lie_does_not(
    tmp_path: Path, data: bytes, place: int, bit: int
) -> None:
    changed = bytearray(data)
    changed[place % len(data)] ^= 1 << bit
    found: list[str] = []
    for name, content in (("a", data), ("b", data), ("c", bytes(changed)), ("d", data + b"0")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "model.safetensors").write_bytes(content)
        (tmp_path / name / "README.md").write_text(name, encoding="utf-8")
        found.append(weights_fingerprint(tmp_path / name))
    assert found[0] == found[1] and len(set(found)) == 3


def test_of_a_large_file_the_end_counts_too(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(bytes(8 << 20))
    before = weights_fingerprint(tmp_path)
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"1")
    assert weights_fingerprint(tmp_path) != before


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected weights"):
        weights_fingerprint(tmp_path)
