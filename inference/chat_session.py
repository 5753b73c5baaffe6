"""A chat with a model: messages of words, pictures and sounds in, answers of words, pictures and sounds out.

One session is one conversation. Its history is token ids (:mod:`inference.chat_history`); an exchange enters it when the
answer is whole, and what no longer fits the model's context leaves it by whole exchanges, the oldest first. Media of
answers are saved as files in the session's folder; the path of an event is the path of the file.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from inference.chat_files import Said, SavedChat, read_chat, write_chat
from inference.chat_grammar import fit_turn
from inference.chat_history import ChatForm, Exchange
from inference.chat_messages import FilePart as FilePart
from inference.chat_messages import Finished as Finished
from inference.chat_messages import MediaReady as MediaReady
from inference.chat_messages import Reply as Reply
from inference.chat_messages import ReplyPart
from inference.chat_messages import TextDelta as TextDelta
from inference.chat_messages import TextPart as TextPart
from inference.chat_messages import UserMessage as UserMessage
from inference.chat_reading import ClosedMedium, IdReader, join_words
from inference.chat_requests import user_turn
from inference.generation import Request, stream
from inference.grammar import Grammar
from inference.media_out import save_medium
from inference.runtime import Runtime
from shards.errors import AnyGPTError
from shards.vocabulary import Modality, TokenIds

Event = TextDelta | MediaReady | Finished


class ChatSession:
    """One conversation with one model."""

    def __init__(
        self, runtime: Runtime, *, seed: int = 0, folder: Path | None = None, context: int | None = None
    ) -> None:
        """Begin an empty chat.

        Args:
            folder: where media of answers are saved; None: a new one under the config's ``output``.
            context: ids that prompt and answer may have together; None: the positions the model was made for.
        """
        self.runtime, self.seed = runtime, seed
        self.form = ChatForm(runtime.vocabulary, runtime.text_tokenizer, runtime.preset)
        self.context = context or runtime.max_length
        self.said: list[Said] = []
        self.dropped = 0
        """How many of the oldest exchanges the model is no longer shown."""
        self.begun = 0
        """Answers begun so far, those of a chat that was cleared among them: no file is written over."""
        self._folder = folder

    @property
    def shown(self) -> list[Exchange]:
        """What the model is shown of the history."""
        return [one.exchange for one in self.said[self.dropped :]]

    @property
    def folder(self) -> Path:
        """Where media of answers are saved; a new one is made when it is first asked for."""
        if self._folder is None:
            self._folder = _new_folder(self.runtime.config.output)
        return self._folder

    def stream(self, message: UserMessage) -> Generator[Event, None, None]:
        """Answer a message bit by bit; the last event is :class:`Finished`.

        Nothing is kept of an exchange whose answer does not come to its end: after an error, or where the caller goes
        away, the history is what it was.

        Raises:
            SampleError: a file that cannot be read, or a message without words and media.
            ConfigError: no codec for a medium, a voice without a vocoder, or a message that leaves no room for an answer.
            TokenizerError: a voice that is no sound.
        """
        if message.voice_prompt is not None:
            self.runtime.voice(message.voice_prompt)  # told before a minute of speech is written for nothing
        turn, files = user_turn(message, self.runtime)
        asked = self.form.ask(turn)
        fitted = fit_turn(
            self.runtime,
            self.form,
            self.shown,
            asked,
            to_modality=message.to_modality,
            is_spoken=any(segment.modality == Modality.SPEECH for segment in turn.segments),
            context=self.context,
        )
        self.begun += 1
        answer = _Answer(self, message.voice_prompt)
        yield from answer.events(self.form.prompt(self.shown[fitted.dropped :], asked), fitted.grammar)
        exchange = Exchange(asked, self.form.close(answer.token_ids))
        self.said.append(Said(exchange, (*files, *answer.files)))
        self.dropped += fitted.dropped
        notices = [*([_dropped_notice(fitted.dropped)] if fitted.dropped else []), *answer.notices]
        parts = tuple(join_words(answer.parts))
        yield Finished(Reply(parts, exchange.answered, "length" if answer.is_cut else "end", tuple(notices)))

    def ask(self, message: UserMessage) -> Reply:
        """Answer a message; errors of :meth:`stream`."""
        *_, last = self.stream(message)
        assert isinstance(last, Finished)
        return last.reply

    def clear(self) -> None:
        """Forget what was said. Files stay."""
        self.said.clear()
        self.dropped = 0

    def save(self, path: Path) -> None:
        """Write the chat to a file, atomically: its ids, and what they belong to."""
        write_chat(path, SavedChat(tuple(self.said), self.dropped, self.seed), self.form)

    @classmethod
    def load(cls, path: Path, runtime: Runtime) -> ChatSession:
        """Go on with a saved chat; its next answers are those it would have had.

        Raises:
            DatasetError: no such file, or none of a chat.
            FingerprintMismatch: it was had with another vocabulary, text tokenizer or system message.
        """
        session = cls(runtime)
        session.restore(path)
        return session

    def restore(self, path: Path) -> None:
        """Put a saved chat in the place of this one; errors of :meth:`load`, after which this one is as it was."""
        saved = read_chat(path, self.form)
        self.said, self.dropped, self.seed = list(saved.said), saved.dropped, saved.seed


class _Answer:
    """One answer as it comes: its ids, what is shown of them, and the files of its media."""

    def __init__(self, session: ChatSession, voice: Path | None) -> None:
        self.token_ids: list[int] = []
        self.parts: list[ReplyPart] = []
        self.files: list[Path | None] = []
        self.notices: list[str] = []
        self.is_cut = True
        """Whether it ended because there was no room for more, and not because the model ended its turn."""
        self._session, self._voice = session, voice

    def events(self, prompt_ids: TokenIds, grammar: Grammar) -> Generator[ReplyPart, None, None]:
        """Generate, and show what is whole."""
        runtime, number = self._session.runtime, len(self._session.said)
        reader = IdReader(runtime.vocabulary, runtime.text_tokenizer)
        request, sampling = Request(f"chat/{number}", prompt_ids), runtime.decoding.sampling(chat=True)
        state = grammar.start()
        for token_id in stream(runtime.model, request, grammar, sampling, seed=self._session.seed):
            self.token_ids.append(token_id)
            allowed = grammar.rules[grammar.rule(state)].ids
            self.is_cut = token_id not in grammar.end_ids or set(allowed[: len(grammar.end_ids) + 1]) <= grammar.end_ids
            state = grammar.step(state, token_id)
            for event in reader.push(token_id):
                yield from self._show(event)
        for event in reader.finish():
            yield from self._show(event)

    def _show(self, event: TextDelta | ClosedMedium) -> Generator[ReplyPart, None, None]:
        part = self._save(event) if isinstance(event, ClosedMedium) else event
        if part is not None:
            self.parts.append(part)
            yield part

    def _save(self, medium: ClosedMedium) -> MediaReady | None:
        """Decode a medium to a file. One that cannot be decoded stays in the history, and a notice says why."""
        runtime, modality = self._session.runtime, medium.modality
        voice = self._voice if modality == Modality.SPEECH else None
        name = f"{self._session.begun:03d}-{modality}-{len(self.files) + 1}"
        try:
            decoded = runtime.decode(modality, medium.codes, voice=voice)
            rate_hz = runtime.sample_rate_hz(modality)
            path = save_medium(self._session.folder, name, modality, decoded, sample_rate_hz=rate_hz)
        except AnyGPTError as error:
            self.files.append(None)
            self.notices.append(f"The {modality} of this answer could not be decoded. {error}")
            return None
        self.files.append(path)
        return MediaReady(modality, path)


def _dropped_notice(count: int) -> str:
    what = "exchange was" if count == 1 else f"{count} exchanges were"
    return f"The chat outgrew the model's context: the oldest {what} left out; the model has forgotten what was said there."


def _new_folder(output: Path) -> Path:
    """The first free ``chat-NNNN``; another process may look for one at the same time."""
    number = 1
    while True:
        folder = output / f"chat-{number:04d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder
