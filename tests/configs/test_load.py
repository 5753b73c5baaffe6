"""A config that is wrong fails at once, and says in which file, at which key, and what to do."""

from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from configs.load import Config, load_config, parse_args, read_toml
from shards.errors import ConfigError


class Inner(Config):
    size: int = 1
    name: str = "x"


class Outer(Config):
    output: str
    share: float = Field(default=0.5, ge=0.0, le=1.0)
    inner: Inner = Inner()


class Tables(Config):
    sources: dict[str, Inner] = {}
    stages: tuple[Inner, ...] = ()
    either: Annotated[Inner | None, Field(description="an option")] = None
    deep: dict[str, list[Inner]] = {}
    kinds: list[Inner | Outer] = []


def write(folder, name: str, text: str):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_read_with_its_base_under_it_and_overrides_on_top(tmp_path):
    write(tmp_path, "base.toml", 'output = "a"\nshare = 0.1\n[inner]\nsize = 2\nname = "b"\n')
    path = write(tmp_path, "top.toml", 'base = "base.toml"\nshare = 0.2\n[inner]\nsize = 3\n')
    config = load_config(path, Outer, ["inner.name=c", "output=some/path"])
    assert config == Outer(output="some/path", share=0.2, inner=Inner(size=3, name="c"))


WRONG = [
    ('outputs = "a"\noutput = "a"', "unknown key 'outputs'; did you mean 'output'"),
    ('output = "a"\n[inner]\nsizes = 3', "unknown key 'inner.sizes'; did you mean 'size'"),
    ("share = 0.5", "key 'output' is required"),
    ('output = "a"\nshare = "half"', "key 'share'"),
    ('output = "a"\nshare = 1.5', "key 'share'"),
    ("output = ", "expected TOML"),
    ('output = "a"\nbase = "none.toml"', "none.toml: expected a config file"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_wrong_is_named_with_its_file(tmp_path, text, message):
    path = write(tmp_path, "run.toml", text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, Outer)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[sources.speech]\nKEY = 3", "sources.speech.KEY"),
        ("[[stages]]\n[[stages]]\nKEY = 3", "stages.1.KEY"),
        ("[either]\nKEY = 3", "either.KEY"),
        ("[[deep.a]]\nKEY = 3", "deep.a.0.KEY"),
        ("[[kinds]]\nKEY = 3", "kinds.0.Inner.KEY"),
    ],
)
def test_in_tables_of_tables_and_lists_the_known_keys_are_named_too(tmp_path, text, key):
    for word, hint in (("sizes", "did you mean 'size'"), ("zzz", "known keys here: name, ")):
        path = write(tmp_path, "run.toml", text.replace("KEY", word))
        with pytest.raises(ConfigError) as caught:
            load_config(path, Tables)
        assert f"unknown key '{key.replace('KEY', word)}'; {hint}" in str(caught.value)


def test_a_base_of_a_base_is_refused(tmp_path):
    write(tmp_path, "a.toml", 'output = "a"\n')
    write(tmp_path, "b.toml", 'base = "a.toml"\n')
    path = write(tmp_path, "c.toml", 'base = "b.toml"\n')
    with pytest.raises(ConfigError, match="has a base itself"):
        load_config(path, Outer)


def test_a_broken_base_is_named(tmp_path):
    write(tmp_path, "a.toml", "output = \n")
    path = write(tmp_path, "b.toml", 'base = "a.toml"\n')
    with pytest.raises(ConfigError, match=r"a\.toml: expected TOML"):
        load_config(path, Outer)


def test_a_misspelt_file_gets_a_suggestion(tmp_path):
    write(tmp_path, "pretrain.toml", 'output = "a"\n')
    with pytest.raises(ConfigError, match=r"did you mean .*pretrain\.toml"):
        load_config(tmp_path / "pretrian.toml", Outer)


@pytest.mark.parametrize(
    ("override", "message"), [("output", "expected key=value"), ("output.a=1", "is a value"), ("=3", "key=value")]
)
def test_a_malformed_override_is_refused(tmp_path, override, message):
    path = write(tmp_path, "run.toml", 'output = "a"\n')
    with pytest.raises(ConfigError, match=message):
        load_config(path, Outer, [override])


@given(st.integers(-(2**60), 2**60))
def test_an_override_is_read_as_toml(tmp_path_factory, size):
    path = write(tmp_path_factory.mktemp("c"), "run.toml", 'output = "a"\n')
    assert load_config(path, Outer, [f"inner.size={size}"]).inner.size == size


def test_configs_are_frozen(tmp_path):
    config = load_config(write(tmp_path, "run.toml", 'output = "a"\n'), Outer)
    with pytest.raises(ValueError, match="frozen"):
        config.share = 0.1  # type: ignore[misc]


def test_every_shipped_toml_reads(repository):
    """No committed config is broken TOML, has two bases, or names a base that is not there."""
    paths = sorted((repository / "configs").rglob("*.toml"))
    assert len(paths) > 30
    for path in paths:
        assert read_toml(path)


def test_one_grammar_for_every_command(tmp_path):
    args = parse_args("p", "d", ["a.toml", "b.toml", "--set", "x=1", "--limit", "3", "--dry-run"], several=True)
    assert [path.name for path in args.config] == ["a.toml", "b.toml"]
    assert (args.set, args.limit, args.dry_run) == (["x=1"], 3, True)
    with pytest.raises(SystemExit) as caught:
        parse_args("p", "d", [])
    assert caught.value.code == 2
