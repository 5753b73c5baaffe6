"""Who is left out, given signatures: as a plain loop over samples would say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.samples import Source
from pipeline.signatures import ExactConfig, MediumSignature, PictureHashConfig, Signature
from shards.modality import Modality
from shards.writer import commit_table
from tokenize_jobs.dedup_config import DedupConfig
from tokenize_jobs.dedup_lists import Listed
from tokenize_jobs.dedup_match import REASONS, judge
from tokenize_jobs.dedup_table import open_table
from tokenize_jobs.dedup_units import SignatureTask, signatures_to_table
from tokenize_jobs.plan import TokenizeConfig, cut_units

UNIT_ITEMS = 4
GREY = bytes([128] * 12)


def medium(number: int, *, picture: int | None = None, colours: bytes = GREY, decoded: int | None = None):
    return MediumSignature(
        "image",
        Modality.IMAGE,
        number.to_bytes(32, "big"),
        b"" if decoded is None else decoded.to_bytes(32, "big"),
        picture,
        colours if picture is not None else b"",
    )


def signature(name: str, *media: MediumSignature, names: tuple[int, ...] = ()) -> Signature:
    return Signature(name, media, (), b"", b"", names)


def verdicts(
    folder: Path, corpora: list[list[Signature]], *, listed: Listed | None = None, **keys
) -> list[tuple[str, str, str | None, float]]:
    """(sample, reason, sample it is a copy of, score) for everything left out, in order."""
    config = DedupConfig(corpora=(Path("none.toml"),), output=folder, **keys)
    tasks = []
    for number, samples in enumerate(corpora):
        corpus = TokenizeConfig(corpus="laion2b", name=f"c{number}", root=folder, output=folder)
        units = cut_units([Source(folder / "raw", len(samples))], unit_items=UNIT_ITEMS)
        task = SignatureTask(config, corpus, "facts", units)
        for unit in units:
            commit_table(task.path(unit), signatures_to_table(samples[unit.start : unit.stop]))
        tasks.append(task)
    ids = [sample.sample_id for samples in corpora for sample in samples]
    with open_table(folder, memory_gib=0.5, threads=1) as table:
        table.fill(tasks, listed or Listed())
        found = judge(table, config)
    return [
        (ids[sample], REASONS[reason], ids[of] if of >= 0 else found.entries[sample], score)
        for sample, reason, of, score in zip(found.samples, found.reasons, found.of, found.scores, strict=True)
    ]


@settings(max_examples=20, deadline=None)
@given(
    samples=st.lists(st.lists(st.integers(0, 6), max_size=3), min_size=1, max_size=14),
    split=st.integers(0, 14),
    rule=st.sampled_from(["all", "any"]),
)
def test_samples_are_judged_as_a_plain_loop_would(tmp_path_factory, samples: list[list[int]], split: int, rule: str):
    """Also with units and corpora in between, media that come twice in one sample, and samples without media."""
    owner: dict[int, str] = {}
    expected: list[tuple[str, str | None]] = []
    for number, media in enumerate(samples):
        seen = [one in owner for one in media]
        if media and (all(seen) if rule == "all" else any(seen)):
            expected.append((str(number), next(owner[one] for one in media if one in owner)))
            continue
        for one in media:
            owner.setdefault(one, str(number))
    signed = [signature(str(number), *map(medium, media)) for number, media in enumerate(samples)]
    found = verdicts(tmp_path_factory.mktemp("match"), [signed[:split], signed[split:]], exact=ExactConfig(media=rule))
    assert [(name, of) for name, _, of, _ in found] == expected
    assert {(reason, score) for _, reason, _, score in found} <= {("duplicate_media", 1.0)}


def test_a_document_is_a_copy_only_when_all_its_pictures_are(tmp_path: Path):
    first, second = signature("1", medium(1), medium(2)), signature("2", medium(2))
    partly, wholly = signature("3", medium(1), medium(3)), signature("4", medium(3), medium(2))
    assert [row[0] for row in verdicts(tmp_path, [[first, second, partly, wholly]])] == ["2", "4"]
    any_ = verdicts(tmp_path, [[first, second, partly, wholly]], exact=ExactConfig(media="any"))
    assert [row[0] for row in any_] == ["2", "3", "4"]


def test_an_unreadable_medium_is_nobody_s_copy(tmp_path: Path):
    unread = MediumSignature("image", Modality.IMAGE)
    assert verdicts(tmp_path, [[signature("1", unread, medium(1)), signature("2", unread, medium(1))]]) == []


def test_near_copies_hang_together_and_the_first_is_kept(tmp_path: Path):
    """The third is near the second and not near the first: one cluster all the same."""
    signed = [
        signature(str(n), medium(n, picture=hash_)) for n, hash_ in enumerate((0b0, 0b1111, 0b11111111, 2**63 - 1))
    ]
    assert verdicts(tmp_path, [signed]) == [
        ("1", "near_duplicate_picture", "0", 1 - 4 / 64),
        ("2", "near_duplicate_picture", "0", 1 - 8 / 64),
    ]
    assert verdicts(tmp_path, [signed], pictures=PictureHashConfig(max_distance=3)) == []
    assert verdicts(tmp_path, [signed], pictures=PictureHashConfig(on=False)) == []


def test_equal_shapes_in_other_colours_are_no_copies(tmp_path: Path):
    red, blue, nearly = bytes([200, 0, 0] * 4), bytes([0, 0, 200] * 4), bytes([190, 10, 0] * 4)
    signed = [signature(str(n), medium(n, picture=5, colours=colours)) for n, colours in enumerate((red, blue, nearly))]
    assert [(row[0], row[2]) for row in verdicts(tmp_path, [signed])] == [("2", "0")]


def test_a_decoded_sound_counts_only_when_asked_for(tmp_path: Path):
    signed = [signature("wav", medium(1, decoded=9)), signature("flac", medium(2, decoded=9))]
    assert verdicts(tmp_path, [signed]) == [("flac", "duplicate_media", "wav", 1.0)]
    assert verdicts(tmp_path, [signed], exact=ExactConfig(on=False)) == []


def test_the_corpus_named_first_keeps_its_copy(tmp_path: Path):
    one, other = [signature("a", medium(1))], [signature("b", medium(1))]
    assert verdicts(tmp_path / "1", [one, other])[0][:3] == ("b", "duplicate_media", "a")
    assert verdicts(tmp_path / "2", [other, one])[0][:3] == ("a", "duplicate_media", "b")


def test_a_leak_goes_first_of_all_and_takes_its_copies_along(tmp_path: Path):
    listed = Listed(names={77: "coco:77"}, media={(1).to_bytes(32, "big"): "coco:1"})
    signed = [
        signature("clean", medium(5)),
        signature("named", medium(4), names=(77, 78)),
        signature("both", medium(1), names=(77,)),
        signature("file", medium(1), medium(5)),
        signature("copy of named", medium(4)),
    ]
    assert verdicts(tmp_path, [signed], listed=listed) == [
        ("named", "leaked_id", "coco:77", 1.0),
        ("both", "leaked_id", "coco:77", 1.0),
        ("file", "leaked_media", "coco:1", 1.0),
        ("copy of named", "duplicate_media", "named", 1.0),
    ]


def test_the_database_leaves_nothing_behind(tmp_path: Path):
    verdicts(tmp_path, [[signature("1", medium(1))]])
    assert not (tmp_path / "scratch").exists()
    with pytest.raises(RuntimeError), open_table(tmp_path, memory_gib=0.5, threads=1):
        raise RuntimeError
    assert not (tmp_path / "scratch").exists()
