"""What readers are made of: lines, large JSON arrays, tar shards, text and paths that nobody may trust."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpora.gigaspeech import write_text
from pipeline.corpora.youtube_music import describe
from pipeline.reading import json_array
from pipeline.reading.files import is_inside, read_media
from pipeline.reading.json_array import iter_array, read_element, recover_cut_object
from pipeline.reading.lines import iter_lines, json_record
from pipeline.reading.outcomes import number
from pipeline.reading.shard_index import open_shard, read_member, split_name
from pipeline.reading.text import clean_text
from shards.errors import SampleError
from tests.fixtures.miniature_corpora import write_tar

RECORD_LINES = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30), max_size=12)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reading")


def reason(call: object, *args: object, **kwargs: object) -> str:
    with pytest.raises(SampleError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    return caught.value.reason


# Lines ---------------------------------------------------------------------------------------------------------------


@given(records=RECORD_LINES, end=st.sampled_from(["\n", "\r\n"]), packed=st.booleans(), bom=st.booleans())
def test_lines_come_back_whatever_the_packing(folder: Path, records: list[str], end: str, packed: bool, bom: bool):
    data = (("\ufeff" if bom else "") + end.join(records)).encode()
    path = folder / "lines"
    path.write_bytes(gzip.compress(data) if packed else data)
    found = list(iter_lines(path))
    if not path.stat().st_size:
        assert [line.problem for line in found] == ["file_empty"]
        return
    assert [line.data.decode() for line in found] == [record for record in records if record.strip(" \t\r\n\v\f")]
    plain = data.removeprefix(b"\xef\xbb\xbf") if bom else data
    for line in found:
        offset = max(0, line.offset - (len(data) - len(plain)))
        assert plain[offset : offset + len(line.data)] == line.data


@given(records=st.lists(st.integers(0, 10**40).map(str), min_size=1, max_size=300), data=st.data())
def test_a_gzip_stream_that_is_cut_gives_every_whole_line_and_one_problem(
    folder: Path, records: list[str], data: st.DataObject
):
    packed = gzip.compress("\n".join(records).encode(), mtime=0)
    cut = data.draw(st.integers(2, len(packed) - 1))
    path = folder / "cut.gz"
    path.write_bytes(packed[:cut])
    *whole, last = iter_lines(path)
    assert last.problem == "file_truncated"
    assert [line.data.decode() for line in whole] == records[: len(whole)]


def test_several_gzip_members_are_one_file(folder: Path):
    path = folder / "members.gz"
    path.write_bytes(gzip.compress(b"one\ntw") + gzip.compress(b"o\n") + gzip.compress(b"three"))
    assert [line.data for line in iter_lines(path)] == [b"one", b"two", b"three"]


def test_a_line_without_an_end_does_not_fill_the_memory(folder: Path):
    path = folder / "long"
    path.write_bytes(b"first\n" + b"x" * 5_000_000 + b"\nlast\n")
    found = [(line.data, line.problem) for line in iter_lines(path, max_line_bytes=1000)]
    assert found == [(b"first", ""), (b"", "line_too_long"), (b"last", "")]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"{", "json_invalid"),
        (b"[1]", "record_malformed"),
        (b'{"a": "\xe9"}', "text_not_utf8"),
        (b"[" * 100_000, "json_invalid"),
    ],
)
def test_a_line_that_is_no_record_has_a_reason(folder: Path, data: bytes, wanted: str):
    path = folder / "record"
    path.write_bytes(data)
    (line,) = iter_lines(path)
    assert reason(json_record, line) == wanted


# Large arrays --------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    values=st.lists(JSON_VALUES, max_size=8), indent=st.sampled_from([None, 1]), ascii_=st.booleans(), data=st.data()
)
def test_elements_of_an_array_are_found_one_at_a_time(
    folder: Path, values: list[object], indent: int | None, ascii_: bool, data: st.DataObject
):
    path = folder / "array.json"
    text = json.dumps({"before": "x", "audios": values, "after": [1]}, indent=indent, ensure_ascii=ascii_)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        # So small that every border of the window falls somewhere inside an element.
        patch.setattr(json_array, "_CHUNK", data.draw(st.integers(1, 40)))
        found = list(iter_array(path, "audios"))
    assert [element.value for element in found] == values
    assert [read_element(path, element.offset, element.num_bytes) for element in found] == values


@given(count=st.integers(1, 5), data=st.data())
def test_an_array_that_is_cut_gives_what_is_before_the_cut(folder: Path, count: int, data: st.DataObject):
    values = [{"aid": f"é{n}", "segments": [{"sid": k} for k in range(3)]} for n in range(count)]
    raw = json.dumps({"audios": values}, ensure_ascii=False).encode()
    path = folder / "cut.json"
    path.write_bytes(raw[: data.draw(st.integers(len('{"audios": ['), len(raw) - 3))])
    *whole, last = iter_array(path, "audios")
    assert [element.value for element in whole] == values[: len(whole)]
    assert last.problem == "file_truncated"
    head, segments = recover_cut_object(path.read_bytes()[last.offset :], "segments")
    if len(whole) < count:
        assert segments == values[len(whole)]["segments"][: len(segments)]
        assert not head or head["aid"] == f"é{len(whole)}"


@given(broken=st.integers(0, 2), place=st.integers(0, 60), chunk=st.integers(1, 400))
def test_an_element_that_is_no_json_costs_nothing_but_itself(folder: Path, broken: int, place: int, chunk: int):
    values = [{"aid": f"é{n}", "segments": [{"sid": k, "text": "x"} for k in range(3)]} for n in range(4)]
    texts = [json.dumps(value, ensure_ascii=False) for value in values]
    at = 1 + place % (len(texts[broken]) - 2)
    texts[broken] = texts[broken][:at] + "#" + texts[broken][at:]
    path = folder / "broken.json"
    path.write_text(f'{{"audios": [{", ".join(texts)}]}}', encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_CHUNK", chunk)
        found = list(iter_array(path, "audios", element_key="segments"))
    assert len(found) == len(values)
    for index, (element, value) in enumerate(zip(found, values, strict=True)):
        if index != broken:
            assert element.value == value == read_element(path, element.offset, element.num_bytes)
        else:
            # Inside a string the mark is a character like any other.
            assert element.problem == "json_invalid" or "#" in json.dumps(element.value)


@pytest.mark.parametrize(
    ("text", "problem"), [("", "file_empty"), ("{}", "metadata_malformed"), ('{"audios": null}', "metadata_malformed")]
)
def test_a_file_without_the_array_is_one_problem(folder: Path, text: str, problem: str):
    path = folder / "none.json"
    path.write_text(text, encoding="utf-8")
    assert [element.problem for element in iter_array(path, "audios")] == [problem]


# Shards --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.sampled_from(["jpg", "txt", "json"]), unique=True, min_size=1), max_size=6))
def test_a_clean_shard_is_grouped_as_webdataset_groups_it(folder: Path, groups: list[list[str]]):
    path = folder / "clean.tar"
    members = [(f"{n:04d}.{ext}", f"{n} {ext}".encode()) for n, group in enumerate(groups) for ext in group]
    write_tar(path, members)
    theirs = [
        {key: value for key, value in sample.items() if not key.startswith("__")}
        for sample in webdataset.tariterators.tarfile_samples([{"url": str(path)}])
    ]
    with open_shard(path) as (archive, entries):
        assert archive is not None
        ours = [{ext: read_member(archive, member) for ext, member in entry.members.items()} for entry in entries]
    assert ours == theirs


@given(st.text("ab./_\n", max_size=12) | st.text(max_size=12))
def test_names_are_split_as_webdataset_splits_them(name: str):
    assert (split_name(name) or (None, None)) == webdataset.tariterators.base_plus_ext(name)


@given(st.permutations([(key, ext) for key in "abc" for ext in ("jpg", "txt")]))
def test_members_in_any_order_are_the_same_samples(folder: Path, order: list[tuple[str, str]]):
    path = folder / "mixed.tar"
    write_tar(path, [(f"{key}.{ext}", f"{key}{ext}".encode()) for key, ext in order])
    with open_shard(path) as (archive, entries):
        assert archive is not None
        found = {entry.key: {e: read_member(archive, m) for e, m in entry.members.items()} for entry in entries}
    assert found == {key: {"jpg": f"{key}jpg".encode(), "txt": f"{key}txt".encode()} for key in "abc"}


@given(data=st.data(), packed=st.booleans())
def test_a_shard_that_is_cut_loses_only_what_the_cut_touches(folder: Path, data: st.DataObject, packed: bool):
    """Wherever the cut is: whole samples come out whole, and at most one entry says what happened."""
    file = io.BytesIO()
    sizes = [700, 1500, 300, 512]
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = size
            archive.addfile(info, io.BytesIO(bytes([number]) * size))
    whole = gzip.compress(file.getvalue(), 1, mtime=0) if packed else file.getvalue()[: 512 * 12]
    path = folder / "cut.tar"
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole) - 1))])
    with open_shard(path) as (opened, entries):
        good = [entry for entry in entries if not entry.problem]
        assert [entry.key for entry in good] == [str(n) for n in range(len(good))]
        for entry, size in zip(good, sizes, strict=False):
            assert opened is not None and len(read_member(opened, entry.members["jpg"])) == size
        assert len(entries) - len(good) <= 1
        assert {e.problem for e in entries if e.problem} <= {"archive_truncated", "archive_unreadable"}


def test_garbage_in_the_middle_of_a_shard_is_noticed(folder: Path):
    """Tarfile takes a header it cannot read for the end, and says nothing."""
    path = folder / "garbage.tar"
    write_tar(path, [("0.jpg", b"x"), ("1.jpg", b"y")])
    data = bytearray(path.read_bytes())
    data[1024:1536] = b"#" * 512
    path.write_bytes(bytes(data))
    with open_shard(path) as (_, entries):
        assert [(entry.key, entry.problem) for entry in entries] == [("0", ""), ("", "archive_damaged")]


@given(broken=st.integers(0, 3), packed=st.booleans(), zeros=st.booleans())
def test_a_broken_header_costs_nothing_but_its_member(folder: Path, broken: int, packed: bool, zeros: bool):
    """Reading goes on at the next header; a block of zeros looks like the end, and is not."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(5):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = 700
            archive.addfile(info, io.BytesIO(bytes([number + 1]) * 700))
    data = bytearray(file.getvalue())
    at = broken * 3 * 512
    data[at : at + 512] = (b"\0" if zeros else b"#") * 512
    path = folder / "header.tar"
    path.write_bytes(gzip.compress(bytes(data), 1, mtime=0) if packed else bytes(data))
    with open_shard(path) as (archive, entries):
        if broken == 0 and not zeros:
            # Nothing says that this is a tar.
            assert [entry.problem for entry in entries] == ["archive_unreadable"]
            return
        assert archive is not None
        assert [entry.problem for entry in entries if entry.problem] == ["archive_damaged"]
        for entry in entries:
            if not entry.problem:
                assert read_member(archive, entry.members["jpg"]) == bytes([int(entry.key) + 1]) * 700
        assert [entry.key for entry in entries if not entry.problem] == [str(n) for n in range(5) if n != broken]


def test_tars_one_after_the_other_are_one_shard(folder: Path):
    parts: list[bytes] = []
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        write_tar(folder / "part.tar", [(name, b"x")])
        parts.append((folder / "part.tar").read_bytes())
    path = folder / "joined.tar"
    path.write_bytes(b"".join(parts))
    with open_shard(path) as (_, entries):
        assert [(entry.key, entry.problem) for entry in entries] == [("0", ""), ("1", ""), ("2", "")]


def test_a_member_that_claims_a_terabyte_is_not_read(folder: Path):
    info = tarfile.TarInfo("0.jpg")
    info.size = 1 << 40
    path = folder / "huge.tar"
    path.write_bytes(info.tobuf() + b"x" * 1024)
    with open_shard(path) as (archive, entries):
        assert archive is not None
        assert reason(read_member, archive, entries[0].members["jpg"]) == "media_too_large"


# Text and paths ------------------------------------------------------------------------------------------------------


@given(st.text(max_size=50))
def test_clean_text_is_safe_to_store_and_stable(text: str):
    try:
        cleaned = clean_text(text, what="text")
    except SampleError as error:
        assert error.reason in {"text_empty", "text_not_utf8", "special_tokens_in_text"}
        return
    cleaned.encode("utf-8")
    assert "\0" not in cleaned and cleaned == cleaned.strip() != ""
    assert clean_text(cleaned, what="text") == cleaned


@pytest.mark.parametrize(
    "token", ["<soim>", "<eomu>", "<👀17>", "<🗣️5>", "<🗣5>", "<🎶8191>", "<eoh>", "[Human]", "</s>", "<-Res->"]
)
def test_our_own_tokens_are_refused_wherever_they_stand(token: str):
    assert reason(clean_text, f"a cat {token} on a mat", what="caption") == "special_tokens_in_text"


def test_words_that_only_look_like_tokens_are_kept():
    for text in ("<3 you", "a <b>bold</b> cat", "👀 look", "[human] error", "eos", "🎶 la la 🎶"):
        assert clean_text(text, what="caption") == text


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, "text_missing"),
        (5, "record_malformed"),
        (" \n\0 ", "text_empty"),
        ("x" * 10_001, "text_too_long"),
        ("\ud800", "text_not_utf8"),
    ],
)
def test_what_is_no_text_has_a_reason(value: object, wanted: str):
    assert reason(clean_text, value, what="caption") == wanted


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "a\\..\\b", "a\0b", ""])
def test_names_that_lead_out_are_not_inside(name: str):
    assert not is_inside(name)


def test_media_are_read_inside_the_corpus_only(tmp_path: Path):
    root = tmp_path / "corpus"
    (root / "a").mkdir(parents=True)
    (root / "a" / "good.jpg").write_bytes(b"x")
    (root / "a" / "empty.jpg").write_bytes(b"")
    (tmp_path / "secret").write_bytes(b"s")
    (root / "a" / "link.jpg").symlink_to(tmp_path / "secret")
    (root / "a" / "good_link.jpg").symlink_to(root / "a" / "good.jpg")
    assert read_media(root / "a", "good.jpg", root=root) == b"x"
    assert read_media(root / "a", "good_link.jpg", root=root) == b"x"
    assert reason(read_media, root / "a", "link.jpg", root=root) == "path_outside_corpus"
    assert reason(read_media, root / "a", "../../secret", root=root) == "path_outside_corpus"
    assert reason(read_media, root / "a", "empty.jpg", root=root) == "media_empty"
    assert reason(read_media, root / "a", "gone.jpg", root=root) == "media_missing"
    assert reason(read_media, root, "a", root=root) == "media_missing"
    assert reason(read_media, root, "x" * 5000, root=root) == "media_missing"
    assert reason(read_media, root, 17, root=root) == "record_malformed"
    assert reason(read_media, root / "a", "good.jpg", root=root, max_bytes=0) == "media_too_large"


def test_numbers_are_finite_or_nothing():
    assert number("300") == 300.0 and number(0.5) == 0.5
    assert [number(value) for value in (None, True, "x", float("nan"), float("inf"), "1e999", [], 10**400)] == [
        None
    ] * 8


# Texts of single corpora ---------------------------------------------------------------------------------------------


def test_punctuation_tags_become_punctuation():
    assert write_text("ASK NOT <COMMA> ASK <PERIOD>") == "ask not, ask."
    assert write_text("WHO <QUESTIONMARK> ME <EXCLAMATIONPOINT>", lower_case=False) == "WHO? ME!"
    assert write_text("<COMMA> SO", punctuation=True) == "so"
    assert write_text("A <COMMA> B", punctuation=False) == "a b"
    assert reason(write_text, "<SIL> WORDS") == "unknown_tag"


def test_the_offline_captioner_tells_of_the_music_and_of_nothing_else():
    fields = {
        "title": " Vibe  Ace ",
        "artist": "Ann",
        "description": 'Relaxed jazz. Licensed under CC BY 3.0.\nhttps://example.org/x\nSubscribe!\nA "bell" rings',
        "keywords": ["jazz", "Ann", None, "bell"],
        "lyrics": "la la la",
    }
    assert describe(fields) == '"Vibe Ace" by Ann. Relaxed jazz. A "bell" rings. Keywords: jazz, bell.'
    assert (
        describe(fields, max_description_sentences=1, max_keywords=1)
        == '"Vibe Ace" by Ann. Relaxed jazz. Keywords: jazz.'
    )
    assert describe({"title": None, "description": None, "keywords": None, "artist": "Ann"}) == ""
