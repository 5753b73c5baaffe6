"""``anygpt-chat CONFIG``: talk to a model in a terminal, or let it answer the lines of a file.

Lines are those of :mod:`inference.chat_lines`. They come from a terminal, from standard input, or from ``--script FILE``; a
line that cannot be answered is told and the chat goes on. Ctrl-C breaks an answer off, which is then forgotten together
with its question.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import itertools
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path

from configs.load import parse_args
from inference.chat_grammar import answerable
from inference.chat_lines import COMMANDS, Command, read_line
from inference.chat_messages import Finished, MediaReady, TextDelta, UserMessage
from inference.chat_session import ChatSession
from inference.command_cli import open_in_silence, run_command
from inference.config import InferenceConfig
from inference.runtime import Runtime
from inference.transcript import write_transcript
from shards.errors import AnyGPTError, ConfigError

_PROGRAM = "anygpt-chat"

Show = Callable[[str], object]


def main(argv: Sequence[str] | None = None) -> int:
    """Chat; exit 0 done, 1 a line of a script could not be answered, 2 the config is wrong."""
    args = parse_args(_PROGRAM, "Talk to a model in words, pictures, speech and music.", argv, add=_add)
    return run_command(_PROGRAM, args, InferenceConfig, functools.partial(_chat, args))


def _chat(args: argparse.Namespace, config: InferenceConfig) -> int:
    is_typed = args.script is None and sys.stdin.isatty()
    lines = _typed() if is_typed else _written(args.script)
    session = ChatSession(open_in_silence(config), seed=config.seed)
    if args.load is not None:
        session.restore(args.load)
    if is_typed:
        print(_greeting(session))
    show = functools.partial(print, end="", flush=True)
    failed = converse(session, itertools.islice(lines, args.limit), show, echo=not is_typed)
    return 1 if failed and not is_typed else 0


def converse(session: ChatSession, lines: Iterable[str], show: Show, *, echo: bool = False) -> int:
    """Answer lines until one says ``quit``.

    Args:
        show: writes text to where answers are read.
        echo: write the lines, too.

    Returns:
        how many lines could not be answered.
    """
    failed = 0
    for line in lines:
        if echo and line.strip():
            show(f"> {line.strip()}\n")
        try:
            said = read_line(line, tasks=session.runtime.templates.dialogue.tasks)
            if isinstance(said, UserMessage):
                answer(session, said, show)
            elif said is not None and said.name == "quit":
                break
            elif said is not None:
                _obey(session, said, show)
        except (AnyGPTError, OSError) as error:
            failed += 1
            print(f"{_PROGRAM}: {error}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            failed += 1
            show("\nBroken off; the question is forgotten with it.\n")
    return failed


def answer(session: ChatSession, message: UserMessage, show: Show) -> None:
    """Show an answer as it comes: words at once, media by the path they are saved at, what was heard in brackets."""
    begun = heard = False
    for event in session.stream(message):
        match event:
            case TextDelta(text, heard=is_heard):
                if is_heard != heard:
                    show("(heard: " if is_heard else ")\n")
                    heard = is_heard
                show(text)
                begun = True
            case MediaReady(modality, path):
                show(f"{')' if heard else ''}{chr(10) if begun else ''}[{modality}: {path}]\n")
                begun = heard = False
            case Finished(reply):
                end = f"{')' if heard else ''}{chr(10) if begun else ''}"
                show(end + "".join(f"({notice})\n" for notice in reply.all_notices))


def _obey(session: ChatSession, command: Command, show: Show) -> None:
    match command:
        case Command("clear"):
            session.clear()
            show("Forgotten.\n")
        case Command("save", Path() as file):
            session.save(file)
            show(f"Saved to {file}.\n")
        case Command("load", Path() as file):
            session.restore(file)
            show(f"{len(session.said)} exchanges from {file}.\n")
        case Command("transcript", Path() as file):
            write_transcript(file, session)
            show(f"Written to {file}.\n")
        case _:
            show(_help(session.runtime))


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--script", type=Path, metavar="FILE", help="answer the lines of a file instead of typed ones")
    parser.add_argument("--load", type=Path, metavar="FILE", help="go on with a saved chat")


def _typed() -> Generator[str, None, None]:
    """Lines of a terminal, with its history where Python has it, until the end of the file."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # input() edits lines once it is there
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()


def _written(script: Path | None) -> Iterator[str]:
    if script is None:
        return iter(sys.stdin)
    try:
        return iter(script.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--script {script}: expected lines of text, found {error}; give another file") from error


def _greeting(session: ChatSession) -> str:
    media = ", ".join(str(modality) for modality in answerable(session.runtime)) or "nothing else"
    return f"{session.runtime.config.model}: words, and {media}. |help shows what can be typed; quit leaves."


def _help(runtime: Runtime) -> str:
    tasks, examples = ", ".join(runtime.templates.dialogue.tasks), runtime.config.examples
    return "\n".join(
        [
            'What is in "my cat.png"?                      words, with paths of pictures and sounds in them',
            "What is played in music:song.mp3?             a sound is speech unless it is called music",
            "interleaved|instruction|to_modality|voice_prompt|images|speech|music",
            "interleaved|Draw a red circle.|image          fields at the end may be left out",
            f"TASK|...  for interleaved|...: {tasks}",
            *COMMANDS.values(),
            *([f"This model was taught to answer: {' '.join(examples)}"] if examples else []),
            "",
        ]
    )
