"""Training and validation part: told by content alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.records import Provenance, Segment, TokenizedSample
from shards.verify import verify_dataset
from shards.vocabulary import Modality
from tests.tokenize_jobs import test_packing_job as packing
from tokenize_jobs.packing_cli import pack
from tokenize_jobs.packing_parts import content_key, is_validation

inputs = packing.inputs


def picture(name: str, *, text: str, media: str = "", seed: int = 0) -> TokenizedSample:
    codes = np.random.default_rng(seed).integers(0, 8192, (32, 1)).astype(np.uint16)
    image = Segment("image", Modality.IMAGE, codes=codes, media_sha256=media)
    return TokenizedSample(name, "c", "train", (Segment("caption", Modality.TEXT, text=text), image), Provenance("a"))


shares = st.floats(0, 1)
texts = st.text(max_size=8)


@given(texts, st.text("0123456789abcdef", min_size=1, max_size=8), shares, st.lists(texts, min_size=2, max_size=2))
def test_equal_content_is_in_one_part_whatever_its_id_corpus_and_order(
    text: str, media: str, share: float, names: list[str]
) -> None:
    left, right = (picture(name, text=text, media=media, seed=n) for n, name in enumerate(names))
    right = replace(right, corpus="another", split="test", segments=right.segments[::-1])
    assert content_key(left) == content_key(right)
    assert is_validation(left, share) == is_validation(right, share)


@given(texts, texts, st.integers(0, 3), st.integers(0, 3))
def test_other_texts_or_media_are_other_contents(left: str, right: str, one: int, other: int) -> None:
    """Media are told apart by their checksum, and by their codes where no checksum is known."""
    for media in ("{}", ""):
        keys = [
            content_key(picture("s", text=t, media=media.format(n), seed=n)) for t, n in ((left, one), (right, other))
        ]
        assert (keys[0] == keys[1]) == ((left, one) == (right, other))


@given(st.integers(0, 2**64), shares, shares)
def test_a_larger_share_keeps_what_a_smaller_one_has(number: int, left: float, right: float) -> None:
    sample = picture("s", text=str(number), media="m")
    smaller, larger = sorted((left, right))
    assert is_validation(sample, larger) or not is_validation(sample, smaller)
    assert is_validation(sample, 1.0)
    assert not is_validation(sample, 0.0)


def test_the_share_is_kept() -> None:
    parts = [is_validation(picture("s", text=str(number), media="m"), 0.1) for number in range(5000)]
    assert sum(parts) == pytest.approx(500, abs=80)


def test_adding_data_moves_nothing_between_the_parts(
    tmp_path: Path, inputs: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second corpus has the first's samples again under other ids, and new ones; by id, copies would part."""
    monkeypatch.chdir(repository)
    first = packing.pictures(60)
    more = [replace(sample, sample_id=f"copy/{sample.sample_id}", corpus="copies") for sample in packing.pictures(90)]
    packing.write_samples(tmp_path / "first", first, shard_rows=25)
    packing.write_samples(tmp_path / "second", more, shard_rows=40)
    parts: list[tuple[set[str], set[str]]] = []
    for folders in (["first"], ["first", "second"]):
        output = tmp_path / f"out{len(folders)}"
        paths = [str(tmp_path / name) for name in folders]
        given = packing.arguments(
            inputs, output, tmp_path / "c.toml", f"datasets.pictures.path={paths}", "validation_share=0.2"
        )
        assert pack(given) == 0
        found = []
        for name in ("pictures", "pictures-validation"):
            assert verify_dataset(output / name).faults == ()
            tables = [pq.read_table(path) for path in sorted((output / name).glob("*.samples.parquet"))]
            found.append({sample_id for table in tables for sample_id in table["sample_id"].to_pylist()})
        parts.append((found[0], found[1]))
    (train, validation), (more_train, more_validation) = parts
    assert not train & validation and not more_train & more_validation
    assert train | validation == {sample.sample_id for sample in first}
    assert more_train | more_validation == {sample.sample_id for sample in [*first, *more]}
    assert train < more_train and validation < more_validation
    for one, other in ((more_train, more_validation), (more_validation, more_train)):
        copies = {name.removeprefix("copy/") for name in one}
        assert not copies & other
    assert 5 < len(validation) < 25


def test_parts_may_be_told_by_id_instead() -> None:
    samples = [picture(f"s{number}", text="the same", media="m") for number in range(400)]
    assert {is_validation(sample, 0.5) for sample in samples[:50]} in ({True}, {False})
    by_id = [is_validation(sample, 0.5, by="id") for sample in samples]
    assert 140 < sum(by_id) < 260
