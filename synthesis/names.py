"""Famous people, works and brands, which no picture and no piece of music may be about.

Source: AnyGPT appendix D asks that no description name a famous person or a known piece; whoever paints or plays would
either copy or refuse. A list of our own, as no list is ever whole, and two signs of any other name: a given name before a
capital word (``Anna Smith``), and a capital word after ``by``, ``in the style of`` and the like.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from shards.errors import ConfigError

_PEOPLE = """
    adele, agatha christie, albert einstein, alfred hitchcock, andy warhol, aretha franklin, ariana grande,
    bach, banksy, barack obama, beethoven, beyonce, beyoncé, bill gates, billie eilish, björk, bob dylan, bob
    marley, botticelli, brahms, britney spears, bruce springsteen, bruno mars, caravaggio, celine dion, cezanne,
    charlie chaplin, chopin, claude monet, coldplay, coltrane, cristiano ronaldo, céline dion, cézanne, da
    vinci, dalí, david bowie, debussy, degas, dolly parton, donald trump, dua lipa, duke ellington, dvorak,
    dvořák, ed sheeran, edith piaf, edvard munch, ella fitzgerald, elon musk, elton john, elvis, elvis presley,
    eminem, eric clapton, frank sinatra, freddie mercury, frida kahlo, gandhi, gaudí, george gershwin, georgia
    o'keeffe, giotto, goya, greta thunberg, gustav klimt, handel, hans zimmer, harry styles, haydn, hokusai,
    jackson pollock, janis joplin, jay-z, jimi hendrix, joe biden, john lennon, john williams, johnny cash,
    justin bieber, kanye west, katy perry, keith haring, kendrick lamar, kim kardashian, klimt, kurt cobain,
    lady gaga, lana del rey, leonard cohen, leonardo da vinci, leonardo dicaprio, lionel messi, liszt, louis
    armstrong, ludovico einaudi, madonna, mahatma gandhi, mahler, mariah carey, marilyn monroe, matisse,
    mendelssohn, metallica, michael jackson, michael jordan, michelangelo, miles davis, miley cyrus, miyazaki,
    modigliani, mondrian, monet, mozart, napoleon, nelson mandela, nina simone, norman rockwell, oprah winfrey,
    pablo picasso, paganini, paul mccartney, picasso, pink floyd, pollock, puccini, queen elizabeth,
    rachmaninoff, radiohead, rammstein, raphael, ravel, rembrandt, renoir, rihanna, roger federer, rothko,
    rubens, salvador dali, schubert, schumann, selena gomez, serena williams, shakespeare, shakira, stevie
    wonder, stravinsky, taylor swift, tchaikovsky, the beatles, the rolling stones, tiger woods, titian, tom
    cruise, tom hanks, toulouse-lautrec, tupac, van gogh, verdi, vermeer, vincent van gogh, vivaldi, wagner,
    walt disney, warhol, whitney houston, winston churchill, yo-yo ma
"""
_WORKS = """
    abbey road, american gothic, ave maria, baby shark, bambi, batman, billie jean, blue danube, bohemian
    rhapsody, canon in d, carmina burana, clair de lune, despacito, eine kleine nachtmusik, fortnite, frozen ii,
    fur elise, für elise, game of thrones, girl with a pearl earring, guernica, happy birthday to you, harry
    potter, hello kitty, hey jude, hotel california, jurassic park, lord of the rings, luke skywalker, mario
    kart, mickey mouse, mona lisa, moonlight sonata, ode to joy, pac-man, pikachu, pokemon, pokémon, rhapsody in
    blue, ride of the valkyries, rolling in the deep, sistine chapel, smells like teen spirit, smoke on the
    water, spider-man, spongebob, stairway to heaven, star trek, star wars, starry night, super mario, superman,
    swan lake, the birth of venus, the great wave, the lion king, the nutcracker, the persistence of memory, the
    simpsons, winnie the pooh, yellow submarine
"""
_GIVEN_NAMES = """
    adam, agnes, alan, albert, alex, alexander, alice, amanda, amy, andrew, andy, angela, anna, anne, anthony,
    antonio, arthur, barbara, ben, benjamin, bill, billy, bob, brian, carl, carla, carlos, caroline, catherine,
    charles, charlie, charlotte, chris, christian, christina, claire, claude, daniel, david, diana, diego,
    donald, dorothy, edward, elena, elizabeth, ella, ellen, emily, emma, eric, eva, felix, francis, frank,
    franz, fred, frederick, gabriel, george, giovanni, grace, gustav, hannah, hans, harry, heinrich, helen,
    henri, henry, igor, isaac, isabel, ivan, jack, jacob, jacques, james, jan, jane, jason, jean, jennifer,
    jessica, jim, joan, joe, johann, johannes, john, johnny, jonathan, jose, joseph, josé, juan, julia, julian,
    julie, karen, karl, kate, kevin, laura, leo, leonard, leonardo, linda, lisa, louis, lucas, lucy, luis, luke,
    margaret, maria, marie, mark, martin, mary, matthew, max, maximilian, michael, michelle, miguel, nancy,
    natalie, nicholas, nicole, nina, oliver, olivia, oscar, pablo, patricia, patrick, paul, pedro, peter,
    philip, pierre, rachel, ralph, rebecca, richard, robert, roger, ronald, rosa, ruth, ryan, sam, samuel,
    sandra, sarah, scott, sebastian, sergei, simon, sofia, sophia, sophie, stephen, steve, steven, susan,
    taylor, theo, thomas, tim, tom, tony, victor, victoria, vincent, walter, wilhelm, will, william, wolfgang
"""
_MAKERS = (
    "by",
    "in the style of",
    "in the manner of",
    "in the voice of",
    "inspired by",
    "reminiscent of",
    "portrait of",
    "sung by",
    "composed by",
    "painted by",
    "performed by",
    "similar to",
    "a cover of",
    "a version of",
)
# Capital words that name no person and no work: what may follow "by" or "inspired by" in a description.
_HARMLESS = """
    a, african, american, april, arabic, art, asian, august, autumn, b, baroque, bauhaus, brazilian, british, c,
    caribbean, celtic, chinese, christmas, cuban, d, december, dj, e, easter, edm, english, europe, european, f,
    february, french, friday, g, german, greek, halloween, hawaiian, i, impressionist, indian, indonesian,
    irish, italian, jamaican, january, japan, japanese, jazz, july, june, korean, latin, led, march, may,
    mediterranean, mexican, middle, monday, nordic, november, october, parisian, persian, polish, portuguese,
    r&b, renaissance, roman, romanian, russian, saturday, scandinavian, scottish, september, spanish, spring,
    summer, sunday, swedish, thai, the, thursday, tuesday, turkish, venetian, victorian, vietnamese, wednesday,
    western, winter
"""
# A possessive belongs to no name, an apostrophe inside may.
_TOKEN = re.compile(r"[^\W_]+(?:['’-](?!s\b)[^\W_]+)*")
_CAPITAL = r"[A-ZÀ-ÖØ-Þ][\w'’-]*"
_FULL_NAME = re.compile(rf"\b({_CAPITAL}) (?:[A-Z]\.? )?({_CAPITAL})")
_BY_SOMEBODY = re.compile(rf"\b(?:{'|'.join(_MAKERS)}) (?:the (?:artist|painter|singer|composer|band) )?({_CAPITAL})")
_TITLE = re.compile(
    rf"\b(?:song|track|tune|hit|painting|album|movie|film)(?: called| titled| named)? [\"“'‘]({_CAPITAL})"
)


def famous_name(text: str, more: Path | None = None) -> str | None:
    """The first famous or famous-looking name in a text, or None.

    Args:
        more: a file of further names, one a line.

    Raises:
        ConfigError: there is no such file.
    """
    words = _TOKEN.findall(text.lower())
    listed, longest = _listed(more)
    for start in range(len(words)):
        for stop in range(min(start + longest, len(words)), start, -1):
            if " ".join(words[start:stop]) in listed:
                return " ".join(words[start:stop])
    for match in _FULL_NAME.finditer(text):
        if match[1].lower() in _words(_GIVEN_NAMES) and match[2].lower() not in _words(_HARMLESS):
            return match[0]
    for pattern in (_BY_SOMEBODY, _TITLE):
        for match in pattern.finditer(text):
            if match[1].lower().removesuffix("'s").removesuffix("’s") not in _words(_HARMLESS):
                return match[0]
    return None


@functools.lru_cache(maxsize=8)
def _listed(more: Path | None) -> tuple[frozenset[str], int]:
    """Every listed name, in the words that texts are cut into, and the words of the longest."""
    names = [*_words(_PEOPLE), *_words(_WORKS)]
    if more is not None:
        if not more.is_file():
            raise ConfigError(f"famous_names: expected a file, found none at {more}; correct the path")
        lines = (line.strip().lower() for line in more.read_text(encoding="utf-8").splitlines())
        names += [line for line in lines if line and not line.startswith("#")]
    cut = frozenset(" ".join(_TOKEN.findall(name)) for name in names) - {""}
    return cut, max(name.count(" ") + 1 for name in cut)


@functools.cache
def _words(block: str) -> frozenset[str]:
    return frozenset(" ".join(word.split()) for word in block.split(",") if word.strip())
