"""A dataset as HTML: what a person should see before a cluster trains on it.

One page of the whole, its rows or samples spread evenly; pages of all rows, one after the other; or all there is of one
sample. A page holds everything it shows and asks no network for anything. What decodes is handed in
(:mod:`shards.inspector_media`); without it, text is shown as ids and media as their first codes. What a page costs has
a bound, whatever the size of the dataset (:mod:`shards.survey`).
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.audit import Place, SampleFacts, Trail, trace
from shards.errors import ConfigError
from shards.inspection import read_rows, shown_rows, shown_samples, spread
from shards.inspector_media import Decoders, Detokenizer
from shards.inspector_overview import facts_html, heading_html, survey_html
from shards.inspector_page import contents, in_words, table, tools, write_page
from shards.inspector_rows import legend, row_html
from shards.inspector_samples import left_out_html, read_left_out, sample_html
from shards.manifest import Manifest, read_manifest
from shards.reader import PackedDataset, open_packed
from shards.storage import open_path
from shards.survey import survey_packed
from shards.survey_samples import survey_samples
from shards.writer import commit_bytes

__all__ = ["Decoders", "Detokenizer", "inspect_dataset", "inspect_rows", "inspect_sample", "write_pages"]

ROWS_OPEN = 2
LEFT_OUT_EACH = 10
MAX_ON_PAGE = 500
"""Rows or samples; a row of 4,500 ids is some 100 KB of page."""
MAX_PLACES = 500
"""Lines of the table of all places of a sample: with 44 draws, a page of its windows has some thousand."""


class _Subject:
    """An opened dataset of either kind, as pages need it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self.packed: PackedDataset | None = open_packed(folder) if self.manifest.kind == "packed" else None
        self.noun = "rows" if self.packed else "samples"
        self.total = self.manifest.num_rows

    def overview(self) -> list[str]:
        """Everything but rows: sections with their headings, and links to them."""
        if self.packed:
            # A reader of its own: the shards it maps are let go with it.
            survey = survey_packed(PackedDataset(self.folder, self.manifest, verify="lazy"))
        else:
            survey = survey_samples(self.folder, self.manifest)
        charts = survey_html(survey, self.noun, tokens_known="tokens_by_source" in self.manifest.extra)
        left_out = left_out_html(read_left_out(self.folder, each=LEFT_OUT_EACH), self.manifest)
        sections = {"numbers": "In numbers", "histograms": "Histograms"}
        parts = [_section("numbers", "In numbers", facts_html(self.manifest))]
        parts.append(_section("histograms", "Histograms", charts))
        if left_out:
            sections["left-out"] = "Left out"
            parts.append(_section("left-out", "Left out", left_out))
        return [heading_html(self.manifest), contents(sections | {"shown": self.noun.capitalize()}), *parts]

    def shown(self, numbers: Sequence[int], decoders: Decoders, heading: str, *, links: str = "") -> list[str]:
        """Rows or samples by number."""
        if self.packed:
            rows = enumerate(shown_rows(self.packed, numbers))
            items = [row_html(row, self.packed.vocabulary, decoders, opened=n < ROWS_OPEN) for n, row in rows]
            head = legend() + tools(["modality", "direction", "dataset"], foldable=True)
        else:
            items = [sample_html(sample, decoders) for sample in shown_samples(self.folder, self.manifest, numbers)]
            head = tools(["modality", "split"], foldable=False)
        return [f'<h2 id="shown">{html.escape(heading)}</h2>', links, head, *items, links]


def inspect_dataset(folder: Path, decoders: Decoders, *, rows: int = 20) -> str:
    """The page of a dataset, packed or of samples.

    Args:
        folder: of packed rows, local; or of sample shards, local or remote.
        rows: how many rows or samples to show, spread evenly over the dataset.

    Raises:
        ConfigError: more rows than a page can hold.
        DatasetError: if the folder holds no dataset, or a damaged one.
    """
    _check_size(rows)
    subject = _Subject(folder)
    numbers = spread(subject.total, rows)
    heading = f"{len(numbers):,} of {subject.total:,} {subject.noun}, spread evenly"
    return write_page(subject.manifest.name, [*subject.overview(), *subject.shown(numbers, decoders, heading)])


def inspect_rows(folder: Path, decoders: Decoders, *, start: int, stop: int) -> str:
    """A page of the rows or samples ``[start, stop)``, as far as there are any, without the numbers of the whole.

    Raises:
        ConfigError: there are none, or more than a page can hold.
        DatasetError: as :func:`inspect_dataset`.
    """
    subject = _Subject(folder)
    span = _within(subject, range(start, stop))
    _check_size(len(span))
    heading = _range(subject, span)
    shown = subject.shown(span, decoders, heading)
    return write_page(f"{subject.manifest.name}: {heading}", [heading_html(subject.manifest), *shown])


def inspect_sample(
    folder: Path, sample_id: str, decoders: Decoders, *, samples: Sequence[Path] = (), rows: int = 20
) -> str:
    """All there is of one sample: itself, every packed row that has it, and why something of it was left out.

    Args:
        sample_id: of a sample, of one of its windows, or of the recording that windows were cut from.
        samples: of packed rows: the datasets of samples, or folders to search for them.
        rows: show so many rows and samples; of all others the places are listed.

    Raises:
        DatasetError: no dataset has it, and then the nearest ids are named; or a dataset is damaged.
    """
    trail = trace(folder, sample_id, samples=samples)
    subject = _Subject(folder)
    parts = [heading_html(subject.manifest), f'<h2 class="mono">{html.escape(sample_id)}</h2>']
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in trail.notes]
    if trail.left_out:
        entries = [
            [f"{one.outcome}: {one.reason}", one.sample_id, one.error, one.source_file] for one in trail.left_out
        ]
        parts.append(_section("left-out", "Left out", table(["why", "sample", "what was found", "source"], entries)))
    if trail.samples:
        parts += _samples_of(trail.samples, decoders, rows)
    if subject.packed and trail.places:
        parts += _places_of(subject.packed, trail, decoders, rows)
    return write_page(f"{sample_id} in {subject.manifest.name}", parts)


def write_pages(
    folder: Path, output: Path, decoders: Decoders, *, per_page: int, max_pages: int, rows: range | None = None
) -> list[Path]:
    """All rows or samples on pages ``page-0001.html``, ...; ``index.html`` has the numbers and leads to them.

    Pages of an earlier, longer run are removed.

    Args:
        max_pages: with more, the rows are a selection that is spread evenly.
        rows: those to show, as far as there are any; all when None.

    Returns:
        The pages' paths, the index first.

    Raises:
        ConfigError: there are none of ``rows``, or more on a page than it can hold.
        DatasetError: as :func:`inspect_dataset`.
    """
    _check_size(per_page)
    subject = _Subject(folder)
    span = range(subject.total) if rows is None else _within(subject, rows)
    numbers = span if len(span) <= per_page * max_pages else [span[n] for n in spread(len(span), per_page * max_pages)]
    pages = [numbers[first : first + per_page] for first in range(0, len(numbers), per_page)]
    paths = [output / "index.html", *(output / _page_name(number) for number in range(1, len(pages) + 1))]
    for number, (path, chosen) in enumerate(zip(paths[1:], pages, strict=True), 1):
        links = _page_links(number, len(pages))
        heading = f"Page {number:,} of {len(pages):,}: {_range(subject, chosen)}"
        shown = subject.shown(chosen, decoders.for_another_page(), heading, links=links)
        page = write_page(f"{subject.manifest.name}: page {number}", [heading_html(subject.manifest), *shown])
        commit_bytes(path, page.encode())
    commit_bytes(paths[0], write_page(subject.manifest.name, [*subject.overview(), *_index(subject, pages)]).encode())
    for old in set(output.glob("page-[0-9][0-9][0-9][0-9]*.html")) - set(paths):
        old.unlink()
    return paths


def _section(name: str, heading: str, body: str) -> str:
    return f'<section><h2 id="{name}">{html.escape(heading)}</h2>{body}</section>'


def _check_size(num_rows: int) -> None:
    if num_rows > MAX_ON_PAGE:
        raise ConfigError(
            f"expected at most {MAX_ON_PAGE} rows or samples on a page, found {num_rows:,}; write several pages with "
            "--pages all --per-page N"
        )


def _within(subject: _Subject, rows: range) -> range:
    found = range(max(0, rows.start), min(rows.stop, subject.total))
    if not found:
        raise ConfigError(
            f"{subject.folder}: expected {subject.noun} from 0 to {subject.total - 1}, found {rows.start} to "
            f"{rows.stop - 1} asked for; choose others"
        )
    return found


def _page_name(number: int) -> str:
    return f"page-{number:04d}.html"


def _range(subject: _Subject, numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"{subject.noun[:-1]} {numbers[0]:,} of {subject.total:,}"
    between = "to" if numbers[-1] - numbers[0] == len(numbers) - 1 else "spread evenly to"
    return f"{subject.noun} {numbers[0]:,} {between} {numbers[-1]:,} of {subject.total:,}"


def _page_links(number: int, count: int) -> str:
    links = ['<a href="index.html">index</a>']
    if number > 1:
        links.insert(0, f'<a rel="prev" href="{_page_name(number - 1)}">← previous</a>')
    if number < count:
        links.append(f'<a rel="next" href="{_page_name(number + 1)}">next →</a>')
    return f'<nav class="pages" aria-label="Pages">{"".join(links)}</nav>'


def _index(subject: _Subject, pages: Sequence[Sequence[int]]) -> Iterator[str]:
    shown = sum(map(len, pages))
    chosen = "" if shown == subject.total else f", {shown:,} of {subject.total:,} {subject.noun}"
    yield f'<h2 id="shown">{len(pages):,} pages{chosen}</h2>'
    entries = "".join(
        f'<li><a href="{_page_name(number)}">{html.escape(_range(subject, numbers))}</a></li>'
        for number, numbers in enumerate(pages, 1)
    )
    yield f'<ol class="index">{entries}</ol>'


def _samples_of(facts: Sequence[SampleFacts], decoders: Decoders, most: int) -> Iterator[str]:
    noun = "sample" if len(facts) == 1 else "samples"
    yield f'<h2 id="samples">{len(facts):,} {noun}</h2>'
    for fact in facts[:most]:
        where = f"{fact.folder}/{fact.shard}, row {fact.row:,}" + (f", {fact.unit}" if fact.unit else "")
        yield f'<p class="quiet mono">{html.escape(where)}</p>'
        for sample in read_rows(open_path(fact.folder) / fact.shard, [fact.row]):
            yield sample_html(sample, decoders, whole=True)
    if len(facts) > most:
        yield f'<p class="quiet">and {len(facts) - most:,} more</p>'


def _places_of(dataset: PackedDataset, trail: Trail, decoders: Decoders, most: int) -> Iterator[str]:
    rows = sorted({place.dataset_row for place in trail.places})
    places = f"{len(trail.places):,} place{'s' if len(trail.places) > 1 else ''}"
    yield f'<h2 id="shown">{places} in {len(rows):,} of {dataset.num_rows:,} rows</h2>'
    heads = ["row", "sample", "of", "direction", "draw", "ids", "shard"]
    yield table(heads, [_place_cells(place) for place in trail.places[:MAX_PLACES]])
    if len(trail.places) > MAX_PLACES:
        yield f'<p class="quiet">the first {MAX_PLACES} of {len(trail.places):,} are listed</p>'
    yield legend() + tools(["direction"], foldable=True)
    for row in shown_rows(dataset, rows[:most]):
        wanted = {place.start for place in trail.places if place.dataset_row == row.number}
        yield row_html(row, dataset.vocabulary, decoders, opened=True, wanted=wanted)
    if len(rows) > most:
        yield f'<p class="quiet">{most} of {len(rows):,} rows are shown; the table has the others</p>'


def _place_cells(place: Place) -> list[str | int]:
    ids = f"{place.start:,} to {place.stop:,}"
    return [place.dataset_row, place.sample_id, place.source, in_words(place.direction), place.draw, ids, place.shard]
