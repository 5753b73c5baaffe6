"""The rules of the house that no linter knows: sizes, words, imports of the ground floor, and what may be committed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("shards", "configs", "pipeline", "tokenize_jobs", "train", "inference", "evaluation")
MAX_LINES = 400


def tracked_files() -> list[Path]:
    """Files git knows of; a source archive without git has no such list, and the test says so."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    return [path for name in listing.stdout.split("\0") if name and (path := REPOSITORY / name).is_file()]


def tracked_texts() -> Iterator[tuple[str, str]]:
    """(path, text) of every tracked file that is text."""
    for path in tracked_files():
        data = path.read_bytes()
        if b"\0" not in data:
            yield path.relative_to(REPOSITORY).as_posix(), data.decode("utf-8", errors="replace")


def modules() -> list[Path]:
    """Every Python file of every room."""
    return sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))


def imported_packages(path: Path) -> set[str]:
    """Top-level names that a file imports, wherever in the file it does so."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_imports_go_down_only_and_the_heavy_libraries_stay_in_their_rooms():
    """The contracts of pyproject.toml hold for the tree as it is."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_shards_imports_numpy_pyarrow_and_the_standard_library_and_nothing_else():
    """Whoever has a shard can read it with two wheels; the linter's list cannot name every package there is.

    Object stores need a third, in a file of its own that is imported with the first remote path (decision 0007), and a
    command has a progress bar; neither is there when something is only read.
    """
    allowed = {"numpy", "pyarrow", "shards", *sys.stdlib_module_names}
    strangers = {
        path.name: foreign
        for path in (REPOSITORY / "shards").rglob("*.py")
        if (foreign := imported_packages(path) - allowed)
    }
    assert strangers == {"remote_path.py": {"upath"}, "cli.py": {"tqdm"}}
    local = "import sys, shards.storage, shards.writer, shards.reader, shards.cli; shards.storage.open_path('a'); "
    check = "assert not {'upath', 'fsspec', 'tqdm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", local + check], cwd=REPOSITORY, check=True)


def test_the_only_python_in_configs_is_its_loader():
    """A config is data; a second module there would be a config that computes."""
    found = {path.relative_to(REPOSITORY / "configs").as_posix() for path in (REPOSITORY / "configs").rglob("*.py")}
    assert found <= {"__init__.py", "load.py"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_every_module_opens_with_its_design_note(path: Path):
    """The first lines say what the file is for; an empty ``__init__`` has nothing to say."""
    source = path.read_text(encoding="utf-8")
    if path.name == "__init__.py" and not source.strip():
        return
    assert ast.get_docstring(ast.parse(source)), "no module docstring"


def test_no_file_of_code_is_too_long_to_hold_in_the_head():
    """Four hundred lines is the end; a file that wants more wants to be two."""
    sizes = {
        name: lines
        for name, text in tracked_texts()
        if name.endswith((".py", "Makefile")) and (lines := text.count("\n")) > MAX_LINES
    }
    assert not sizes


def test_no_module_is_a_drawer_for_the_rest():
    """A name says what is inside; these say that nobody knew."""
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    assert not [path for path in modules() if path.stem in drawers]


# Written in pieces, so that this file does not contain what it looks for.
REGISTRY_HOSTS = re.compile(
    "|".join(host + r"\.org" for host in ("py" + "pi", "python" + "hosted", "download." + "pytorch"))
)
MACHINE_PATHS = re.compile(r"(?<![\w.$}])/(?:root|home/\w+|work|mnt/\w+|tmp/\w+)/[\w.]")


@pytest.mark.parametrize(
    "pattern", [REGISTRY_HOSTS, MACHINE_PATHS], ids=["host of a registry", "path of somebody's machine"]
)
def test_no_tracked_file_names_a_machine(pattern: re.Pattern[str]):
    """A lock with a host works behind one mirror only; a config with a home folder works for one person only."""
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_no_large_or_generated_file_is_tracked():
    """Weights, media and datasets are made by commands; git keeps what people write."""
    large = {path.relative_to(REPOSITORY).as_posix(): path.stat().st_size for path in tracked_files()}
    assert not {name: size for name, size in large.items() if size > 1_000_000}
    assert not [name for name in large if name.endswith((".safetensors", ".pt", ".bin", ".arrow", ".pyc"))]


def test_help_lists_every_target():
    """`make help` is a menu, and a dish that is not on it is not ordered."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)$", makefile, flags=re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    menu = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert menu.returncode == 0, menu.stderr
    listed = set(re.findall(r"^ {4}([a-z-]+) ", menu.stdout, flags=re.MULTILINE))
    assert listed == targets == phony
    wanted = "help setup check test pretrain sft tokenize pack inspect bench sample-corpora verify"
    assert set(wanted.split()) <= listed


def test_every_target_that_runs_our_code_sets_up_first():
    """On a fresh machine any command may be the first one."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    rules = re.findall(r"^([a-z-]+):([^#\n]*)##[^\n]*\n((?:\t[^\n]*\n)+)", makefile, flags=re.MULTILINE)
    forgetful = [name for name, needs, recipe in rules if "$(BIN)/" in recipe and "setup" not in needs.split()]
    assert rules and not forgetful


def test_a_missing_argument_is_wrong_usage_and_says_which():
    """`make tokenize` alone cannot know the corpus; it exits as every command does when it is used wrongly."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-o", "setup", "tokenize", "CORPUS="],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "CORPUS=... is missing" in done.stderr


def test_every_link_in_the_documents_leads_somewhere():
    """A reader who follows a link must not find a hole; addresses of the web are not looked up."""
    holes = [
        f"{name}: {target}"
        for name, text in tracked_texts()
        if name.endswith(".md")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
        if "://" not in target and not (REPOSITORY / name).parent.joinpath(target).exists()
    ]
    assert not holes, "\n".join(holes)
