"""The contract of a corpus reader, held by every file in ``pipeline/corpora``, on miniature corpora of our own making."""

from __future__ import annotations

import pickle
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.load import load_config
from pipeline.corpus import BoundReader, CorpusConfig, corpus_names, load_corpus
from pipeline.filters.apply import filter_raw
from pipeline.filters.config import FilterConfig
from pipeline.media import MediaConfig, WindowConfig, make_decoder
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome
from pipeline.samples import Filtered, RawMedia, RawSample, RawText, Reject
from pipeline.tokenization import DecodedSample, decode_samples
from shards.errors import ConfigError, CorpusError
from tests.fixtures.miniature_corpora import BUILDERS, Expected, picture, write_tar

CORPORA = corpus_names()


@pytest.fixture(scope="session")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Expected]]:
    """Corpus -> its folder, and what a reader must make of it."""
    made: dict[str, tuple[Path, Expected]] = {}
    for name, build in BUILDERS.items():
        root = tmp_path_factory.mktemp(name)
        made[name] = (root, build(root))
    return made


def reader_of(name: str, root: Path, **options: object) -> BoundReader:
    return load_corpus(CorpusConfig(corpus=name, root=root, output=Path("unused"), options=options))


def outcome(result: Outcome) -> str | list[tuple[str, str]]:
    """A result in the form that miniature corpora declare."""
    if not isinstance(result, RawSample):
        return result.reason
    return [(s.slot, s.text if isinstance(s, RawText) else str(s.modality)) for s in result.segments]


def read_all(reader: BoundReader) -> list[Outcome]:
    return [result for source in reader.sources() for result in reader.read(source)]


@pytest.mark.parametrize("name", CORPORA)
def test_every_reader_has_options_with_defaults_a_config_and_a_miniature(name: str, repository: Path):
    module = import_module(f"pipeline.corpora.{name}")
    assert issubclass(module.Options, CorpusOptions)
    assert module.Options().split == "train"
    assert module.__doc__ and "Reads:" in module.__doc__ and "Yields:" in module.__doc__
    config = load_config(repository / "configs" / "corpora" / f"{name}.toml", CorpusConfig)
    assert config.corpus == name
    assert config.root == Path(f"data/sample/{name}") and config.output == Path(f"data/tokenized/{name}")
    assert config.tokenizers
    assert name in BUILDERS, f"add a miniature of {name} to tests/fixtures/miniature_corpora.py"


@pytest.mark.parametrize("name", CORPORA)
def test_every_input_of_a_miniature_becomes_what_it_should(name: str, miniatures: dict[str, tuple[Path, Expected]]):
    root, expected = miniatures[name]
    assert [outcome(result) for result in read_all(reader_of(name, root))] == expected


@pytest.mark.parametrize("name", CORPORA)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_slices_put_together_are_the_whole(
    name: str, miniatures: dict[str, tuple[Path, Expected]], data: st.DataObject
):
    """However a source is cut, every input comes exactly once, in order, and looks the same."""
    reader = reader_of(name, miniatures[name][0])
    for source in reader.sources():
        whole = list(reader.read(source))
        assert len(whole) == source.num_items
        cuts = sorted(data.draw(st.lists(st.integers(0, source.num_items), max_size=4)))
        borders = [0, *cuts, source.num_items]
        slices = [reader.read(source, start=start, stop=stop) for start, stop in pairwise(borders)]
        assert [result for piece in slices for result in piece] == whole


@pytest.mark.parametrize("name", CORPORA)
def test_ids_are_unique_and_nothing_names_the_machine(name: str, miniatures: dict[str, tuple[Path, Expected]]):
    root, _ = miniatures[name]
    results = read_all(reader_of(name, root))
    ids = [result.sample_id for result in results]
    assert len(set(ids)) == len(ids)
    for result in results:
        assert result.sample_id.startswith(f"{name}/")
        assert result.corpus == name
        assert not Path(result.provenance.source_file).is_absolute()
        said = result.message if isinstance(result, Reject) else ""
        assert str(root) not in f"{result.sample_id} {result.provenance} {said}"


@pytest.mark.parametrize("name", CORPORA)
def test_every_sample_of_a_miniature_can_be_decoded(name: str, miniatures: dict[str, tuple[Path, Expected]]):
    root, expected = miniatures[name]
    decoded = list(decode_samples(read_all(reader_of(name, root)), make_decoder(MediaConfig(), WindowConfig())))
    assert len(decoded) == len(expected)
    for result, wanted in zip(decoded, expected, strict=True):
        assert isinstance(result, DecodedSample) == isinstance(wanted, list), result


@pytest.mark.parametrize("name", CORPORA)
def test_a_reader_survives_pickling(name: str, miniatures: dict[str, tuple[Path, Expected]]):
    """Ray sends it to its workers."""
    reader = reader_of(name, miniatures[name][0])
    sources = reader.sources()
    again = pickle.loads(pickle.dumps((reader, sources)))
    assert again[0].sources() == sources == again[1]


@pytest.mark.parametrize("name", CORPORA)
def test_a_missing_or_empty_root_is_an_error_that_names_it(name: str, tmp_path: Path):
    with pytest.raises(CorpusError, match=r"root = .*gone.*--set root=DIR"):
        reader_of(name, tmp_path / "gone")
    with pytest.raises(CorpusError, match=f"{tmp_path}.*found none"):
        reader_of(name, tmp_path).sources()


def test_reading_writes_nothing(miniatures: dict[str, tuple[Path, Expected]]):
    for name, (root, _) in miniatures.items():
        before = sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*"))
        read_all(reader_of(name, root))
        assert sorted((str(path), path.stat().st_mtime_ns) for path in root.rglob("*")) == before


def test_an_unknown_corpus_or_option_names_the_nearest(tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean 'gigaspeech'"):
        reader_of("gigaspech", tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'languages'"):
        reader_of("mls", tmp_path, langauges=["english"])
    with pytest.raises(ConfigError, match="split"):
        reader_of("mls", tmp_path, split="dev")


def test_the_licence_of_the_config_reaches_every_result(miniatures: dict[str, tuple[Path, Expected]]):
    root, _ = miniatures["mls"]
    config = CorpusConfig(corpus="mls", root=root, output=Path("unused"), licence="CC BY 4.0")
    assert {result.provenance.licence for result in read_all(load_corpus(config))} == {"CC BY 4.0"}


def test_webdataset_itself_reads_the_same_samples(miniatures: dict[str, tuple[Path, Expected]]):
    """Keys, pictures and texts of a clean shard are those that the library yields."""
    from webdataset.tariterators import tarfile_samples

    root, _ = miniatures["laion2b"]
    (_, second) = reader_of("laion2b", root).sources()
    ours = [result for result in reader_of("laion2b", root).read(second) if isinstance(result, RawSample)]
    theirs = list(tarfile_samples([{"url": str(second.path)}]))
    assert [sample.sample_id.rpartition("/")[2] for sample in ours] == [sample["__key__"] for sample in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        media, text = mine.segments
        assert isinstance(media, RawMedia) and media.data == other["jpg"]
        assert isinstance(text, RawText) and text.text.encode() == other["txt"]


def test_quality_of_laion_is_what_the_json_says(miniatures: dict[str, tuple[Path, Expected]]):
    first = read_all(reader_of("laion2b", miniatures["laion2b"][0]))[0]
    assert isinstance(first, RawSample)
    assert dict(first.quality) == {"similarity": 0.3, "punsafe": 0.01, "pwatermark": 0.2, "width": 48, "height": 36}
    assert first.provenance.url == "https://example.org/000000000.jpg"
    left_out = filter_raw(first, FilterConfig(min_similarity=0.31))
    assert isinstance(left_out, Filtered) and left_out.reason == "similarity_too_low"


def test_options_choose_between_texts(miniatures: dict[str, tuple[Path, Expected]]):
    def texts(name: str, **options: object) -> list[list[str]]:
        results = read_all(reader_of(name, miniatures[name][0], **options))
        return [
            [s.text for s in result.segments if isinstance(s, RawText)]
            for result in results
            if isinstance(result, RawSample)
        ]

    assert texts("laion_coco", caption="all")[0] == ["a", "b"]
    assert texts("laion_coco", caption="alt")[0] == ["Picture number 0 — «déjà vu» 🐣"]
    assert texts("journeydb", text="prompt")[:2] == [["thing 0"], ["thing 1"]]
    assert texts("gigaspeech", lower_case=False, punctuation=False)[0] == ["WELL WHO'S THERE"]
    assert texts("youtube_music", caption_from="metadata")[0] == ['"Vibe" by Ann. Keywords: jazz.']
    assert texts("youtube_music", caption_from="metadata", captioner="tests.pipeline.test_corpora:shout")[0] == [
        "VIBE!"
    ]
    assert texts("commonvoice", lower_case=True)[0] == ['he said "yes", didn\'t he?']
    assert texts("mls", languages=["spanish"]) == [["una cuñada por otra"]]


def shout(fields: dict[str, str]) -> str:
    """A captioner, as a user may plug one in."""
    return fields["title"].upper() + "!"


def test_a_captioner_that_is_not_there_is_a_config_error(miniatures: dict[str, tuple[Path, Expected]]):
    with pytest.raises(ConfigError, match=r"package\.module:function"):
        read_all(reader_of("youtube_music", miniatures["youtube_music"][0], captioner="json:no_such_function"))


def test_segments_of_gigaspeech_are_cuts_of_one_recording(miniatures: dict[str, tuple[Path, Expected]]):
    root, _ = miniatures["gigaspeech"]
    reader = reader_of("gigaspeech", root)
    assert [source.num_items for source in reader.sources()] == [4, 1, 1]
    spoken = [result.segments[0] for result in read_all(reader) if isinstance(result, RawSample)]
    cuts = [(s.path, s.begin_s, s.end_s) for s in spoken if isinstance(s, RawMedia)]
    opus = root / "audio" / "podcast" / "P0001" / "POD1.opus"
    assert cuts == [(opus, 1.0, 2.5), (opus, 2.0, 4.0)]


def test_segments_outside_the_chosen_subsets_are_filtered(miniatures: dict[str, tuple[Path, Expected]]):
    results = read_all(reader_of("gigaspeech", miniatures["gigaspeech"][0], subsets=["{DEV}"]))
    reasons = [outcome(result) for result in results]
    assert reasons[:4] == ["garbage_tag", *["subset_not_chosen"] * 3]


@pytest.mark.parametrize(
    ("speech", "slots"),
    [
        ("text", ["user text", "user image", "user text", "assistant text", "assistant music"]),
        (
            "speech",
            ["user speech", "user image", "transcript text", "assistant text", "assistant music", "assistant speech"],
        ),
        (
            "both",
            [
                *["user speech", "user text", "user image", "user text"],
                *["assistant text", "assistant music", "assistant speech"],
            ],
        ),
    ],
)
def test_spoken_turns_are_read_as_asked(speech: str, slots: list[str], miniatures: dict[str, tuple[Path, Expected]]):
    first = read_all(reader_of("anyinstruct", miniatures["anyinstruct"][0], speech=speech))[0]
    assert isinstance(first, RawSample)
    kinds = [f"{s.slot} {'text' if isinstance(s, RawText) else s.modality}" for s in first.segments]
    assert kinds == slots
    heard = [s.text for s in first.segments if isinstance(s, RawText) and s.slot == "transcript"]
    assert heard == (["What fits here?"] if speech == "speech" else [])


def test_a_document_can_refuse_to_lose_a_picture(miniatures: dict[str, tuple[Path, Expected]]):
    root, _ = miniatures["mmc4_core_ff"]
    strict = [outcome(result) for result in read_all(reader_of("mmc4_core_ff", root, drop_missing_pictures=False))]
    assert strict == ["media_missing"] * 3
    first = read_all(reader_of("mmc4_core_ff", root))[0]
    assert isinstance(first, RawSample) and first.quality["pictures_dropped"] == 1.0
    picky = outcome(read_all(reader_of("mmc4_core_ff", root, min_matched_sim=0.4))[0])
    assert picky == [("text", "One."), ("text", "Two."), ("image", "image"), ("text", "Three.")]


def test_names_that_are_no_text_can_still_be_stored(tmp_path: Path):
    """A tar member in Latin-1 and a url with half a character must not stop the unit that writes their rows."""
    members = [("caf\udce9.jpg", picture(1)), ("caf\udce9.txt", b"a cup"), ("x.jpg", picture(2)), ("x.txt", b"a cat")]
    write_tar(
        tmp_path / "0.tar",
        [*members, ("x.json", b'{"url": "\\ud800"}'), ("caf\udce9.json", b"{}"), ("\udce9.txt", b"")],
    )
    results = read_all(reader_of("laion2b", tmp_path))
    assert [outcome(result) for result in results][2] == "media_missing"
    assert results[0].sample_id == "laion2b/0/caf\\udce9"
    assert results[1].provenance.url == "\\ud800"
    for result in results:
        f"{result.sample_id}{result.provenance}{getattr(result, 'message', '')}".encode()


def test_a_file_that_grew_is_read_up_to_what_was_counted(miniatures: dict[str, tuple[Path, Expected]]):
    """A unit's slice is the plan's, whatever happens to the file in between."""
    reader = reader_of("journeydb", miniatures["journeydb"][0])
    (source,) = reader.sources()
    assert len(list(reader.read(replace(source, num_items=99), start=1, stop=3))) == 2
