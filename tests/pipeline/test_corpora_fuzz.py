"""Damage nobody thought of: any byte of any file of a corpus may be wrong, missing or too much.

Whatever happens to a file, listing and reading agree on the number of inputs, each ends once, nothing but a
``CorpusError`` stops a reader, and what comes out can be stored.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus import CorpusConfig, corpus_names, load_corpus
from pipeline.filters.apply import filter_decoded
from pipeline.filters.config import FilterConfig
from pipeline.media import MediaConfig, WindowConfig, make_decoder
from pipeline.tokenization import DecodedSample, decode_samples
from shards.errors import CorpusError
from tests.fixtures.miniature_corpora import BUILDERS

# Pieces that mean something in one of the formats, and so break more than random bytes do.
MEANINGFUL = (
    *(
        b"\0",
        b"\n",
        b"\r",
        b"\t",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\xff",
        b"\xed\xa0\x80",
        b"\\ud800",
    ),
    *(b"../", b"/", b"null", b"NaN", b"-1", b"1e999", b"[[[[", b"<soim>", b"true", b'""', b"\xef\xbb\xbf", b"\x1f\x8b"),
)
DAMAGE = st.tuples(
    st.sampled_from(["replace", "insert", "delete", "cut", "swap", "empty"]),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(MEANINGFUL) | st.binary(min_size=1, max_size=4),
    st.integers(1, 600),
)
JSON_CORPORA = ("journeydb", "mmc4_core_ff", "gigaspeech", "youtube_music", "anyinstruct")
ODD_VALUES = (
    None,
    True,
    -1,
    1.5,
    float("nan"),
    10**400,
    "",
    "../x",
    "\ud800",
    "\0",
    [],
    [[]],
    {},
    {"a": []},
    ["x", 1],
    "x" * 300,
)


def damage(data: bytes, kind: str, place: float, piece: bytes, size: int) -> bytes:
    """A file with one thing wrong."""
    at = int(place * len(data))
    if kind == "replace":
        return data[:at] + piece + data[at + len(piece) :]
    if kind == "insert":
        return data[:at] + piece + data[at:]
    if kind == "delete":
        return data[:at] + data[at + size :]
    if kind == "cut":
        return data[:at]
    if kind == "swap":
        return data[at:] + data[:at]
    return b""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Corpus -> an intact miniature."""
    roots: dict[str, Path] = {}
    for name, build in BUILDERS.items():
        roots[name] = tmp_path_factory.mktemp(name)
        build(roots[name])
    return roots


@pytest.mark.parametrize("name", corpus_names())
@settings(max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 100), wrong=st.lists(DAMAGE, min_size=1, max_size=3))
def test_no_damage_stops_a_reader_or_loses_an_input(
    name: str,
    originals: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    which: int,
    wrong: list[tuple[str, float, bytes, int]],
):
    root = tmp_path_factory.getbasetemp() / "damaged" / name
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(originals[name], root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = files[which % len(files)]
    data = path.read_bytes()
    for one in wrong:
        data = damage(data, *one)
    path.write_bytes(data)
    run(name, root)


@pytest.mark.parametrize("name", JSON_CORPORA)
@settings(max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), odd=st.sampled_from(ODD_VALUES))
def test_no_value_of_the_wrong_kind_stops_a_reader(
    name: str, originals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, place: float, odd: object
):
    """A list where a name should be, half a character, an integer of 400 digits: valid JSON all the same."""
    root = tmp_path_factory.getbasetemp() / "odd" / name
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(originals[name], root)
    texts = sorted(path for path in root.rglob("*") if path.suffix in (".json", ".jsonl", ".gz"))
    path = texts[int(place * 997) % len(texts)]
    packed = path.read_bytes().startswith(b"\x1f\x8b")
    text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
    records = [text] if path.suffix == ".json" else [line for line in text.splitlines() if line]
    chosen = int(place * 31) % len(records)
    try:
        value = json.loads(records[chosen])
    except ValueError:
        return
    records[chosen] = json.dumps(with_odd(value, place, odd))
    path.write_text("\n".join(records), encoding="utf-8")
    run(name, root)


def with_odd(value: object, place: float, odd: object) -> object:
    """The same JSON with one of its values replaced, whichever ``place`` in [0, 1) points at."""
    places: list[tuple[object, object]] = []

    def walk(node: object) -> None:
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ()):
            places.append((node, key))
            walk(inner)

    walk(value)
    if not places:
        return odd
    node, key = places[int(place * len(places))]
    node[key] = odd  # type: ignore[index]
    return value


def run(name: str, root: Path) -> None:
    """Read and decode a corpus as stage A does, and hold the sums."""
    reader = load_corpus(CorpusConfig(corpus=name, root=root, output=Path("unused")))
    try:
        sources = reader.sources()
    except CorpusError:
        return
    decode = make_decoder(MediaConfig(), WindowConfig())
    for source in sources:
        raw = list(reader.read(source))
        assert len(raw) == source.num_items
        ended = list(filter_decoded(decode_samples(raw, decode), FilterConfig()))
        assert len(ended) == source.num_items
        for result in ended:
            said = "" if isinstance(result, DecodedSample) else f"{result.reason} {result.message}"
            f"{result.sample_id} {result.provenance} {said}".encode()
            if isinstance(result, DecodedSample):
                "".join(s.text or "" for s in result.segments if not hasattr(s, "clip")).encode()
