"""A SEED-LLaMA on a server: a language model whose token ids an engine elsewhere computes."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ..codes.value import BEGIN_IMAGE, END_IMAGE, image_token
from ..errors import GenerationError
from ..llm.language import LanguageModel, OnStep
from ..llm.prompt import PromptTemplate
from ..llm.request import DecodeRequest, reply_length
from ..llm.vocab import Vocabulary
from ..models.llm import find_llm_folder, read_description, read_end_ids, template_of
from ..waiting import attended
from . import dialects
from .connection import Connection, Patience
from .failures import GarbageError, Refusal, explained, quoted
from .grammar import picture_grammar
from .rows import Row
from .server_file import ServerFile, read_server_file

# How engines write the most tokens that they read into a refusal.
_CONTEXT = re.compile(r"(?:max_model_len=|context length \D{0,12})([1-9]\d{0,8})\b")

_SEEDS = 2**63  # engines take them as signed numbers of 64 bits, and -1 for none


class ServedLLM(LanguageModel):
    """A SEED-LLaMA on a server, which is not asked before the first generation.

    Of each generator only the seed counts that it was given: the same seed gives the same reply
    from the same server, and another one than here.
    """

    def __init__(
        self,
        server: ServerFile,
        vocab: Vocabulary,
        template: PromptTemplate,
        end_ids: frozenset[int],
        context: int,
    ) -> None:
        super().__init__(vocab, template, end_ids)
        self.server = server
        self._context = context
        self._met: object = self  # what the server was last seen to serve; here nothing yet

    @property
    def context(self) -> int:
        """The most tokens of prompt and reply together; a server may read less."""
        return self._context

    @property
    def place(self) -> str:
        """Where it computes, for the log."""
        return f"server: {self.server.path.name}, model: {self.server.model}"

    def memory_required(self, tokens: int, variations: int = 1) -> int:
        """Return 0: the work is done elsewhere."""
        return 0

    def _continue(self, request: DecodeRequest, on_step: OnStep | None) -> list[list[int]]:
        dialects.check_options(self.server.dialect, request.options)
        generation = _Generation(self, request)

        def tell() -> None:
            if on_step is not None:
                on_step(*generation.progress())
            generation.patience.check()

        try:
            attended(lambda stopped: generation.run(), tell, generation.news)
        finally:
            generation.connection.close()
        return [row.token_ids for row in generation.rows]

    def meet(self, connection: Connection) -> int:
        """Ask the server what it serves; it may have been started anew since the last time.

        What an engine does not tell is not checked.

        Returns:
            The most tokens of prompt and reply together there.

        Raises:
            GenerationError: it serves another model than the vocabulary's.
        """
        serves, context = _told(_models(connection), self.server)
        if serves != self._met:
            _check_vocabulary(connection, self.server, self.vocab)
            self._met = serves
        return min(self._context, context or self._context)


class _Generation:
    """One request's replies, while they come."""

    def __init__(self, llm: ServedLLM, request: DecodeRequest) -> None:
        self.patience = Patience(llm.server)
        self.connection = Connection(llm.server, self.patience)
        self.news = threading.Event()  # set when tokens have come
        self._llm = llm
        self._request = request
        self._context = llm.context
        self._length = reply_length(request, llm.context)
        self.rows: list[Row] = []

    def progress(self) -> tuple[int, int, Callable[[], Sequence[int]]]:
        """Return the tokens of the longest reply, the most there can be, and the first reply's."""
        rows = self.rows
        if not rows:
            return 0, self._length, list
        token_ids = rows[0].token_ids
        have = len(token_ids)
        return max(len(row.token_ids) for row in rows), self._length, lambda: token_ids[:have]

    def run(self) -> None:
        """Get all replies, in the background."""
        with explained(self._llm.server):
            self._context = self._llm.meet(self.connection)
            try:
                self._answer_all()
            except Refusal as error:
                told = _context_in(error)
                if told is None or told >= self._context:
                    raise
                self._context = told
                self._answer_all()  # as long as the server reads, or refused as it is here
        self.patience.end()

    def _answer_all(self) -> None:
        self._length = reply_length(self._request, self._context)
        self.rows = self._empty_rows()
        for rows in self._batches():
            self._complete(rows, self._request.options.reply != "text")
            for row in rows:
                while row.lacks_room:  # for a picture: words go on in its place
                    self._complete([row], False)
        if len(self.rows) < len(self._request.generators):
            self.rows *= len(self._request.generators)

    def _empty_rows(self) -> list[Row]:
        llm, request = self._llm, self._request
        seeds = [generator.initial_seed() % _SEEDS for generator in request.generators]
        if dialects.is_greedy(request.options):  # they would all be the same
            seeds = seeds[:1]
        vocab = llm.vocab
        rows = [
            Row(
                *(str(llm.server), request.tokens, vocab.size, vocab.eos, llm.end_ids),
                *(self._length, seed),
            )
            for seed in seeds
        ]
        if request.options.reply == "image":
            for row in rows:
                row.take(request.tokens.begin)
        return rows

    def _batches(self) -> list[list[Row]]:
        """Return the rows that one request can ask for: those whose seeds follow one another."""
        batches: list[list[Row]] = []
        counts = self._llm.server.dialect.counts_seeds
        for row in self.rows:
            if counts and batches and row.seed == batches[-1][-1].seed + 1:
                batches[-1].append(row)
            else:
                batches.append([row])
        return batches

    def _complete(self, rows: list[Row], may_draw: bool) -> None:
        """Have rows that are alike so far continued until all have ended or lack room."""
        llm, request, first = self._llm, self._request, rows[0]
        is_inside = first.token_ids == [request.tokens.begin]
        has_pictures = may_draw and (is_inside or first.has_room_for_a_picture())
        for row in rows:
            row.go_on(has_pictures)
        content = dialects.completion(
            llm.server.dialect,
            llm.server.model,
            [*request.prompt, *first.token_ids],
            request.options,
            picture_grammar(request.tokens, llm.vocab.eos, has_pictures, is_inside),
            first.room,
            first.seed,
            len(rows),
            llm.end_ids,
        )
        with closing(self.connection.events("/v1/completions", content)) as events:
            for event in events:
                if self._take(event, rows):
                    self.patience.expect("further token", "gap_seconds")
                    self.news.set()
                if not any(row.is_waiting for row in rows):
                    return
        raise ConnectionError("a reply has no end")

    def _take(self, event: dict[str, Any], rows: list[Row]) -> bool:
        """Hand on what an event brings; tell whether that is anything."""
        choices = event.get("choices")
        if not isinstance(choices, list):
            raise GarbageError("an event without choices")
        is_news = False
        for choice in choices:
            index = choice.get("index") if isinstance(choice, dict) else None
            if type(index) is not int or not 0 <= index < len(rows):
                raise GarbageError(f"reply {index!r:.40} of {len(rows)}")
            reason, token_ids = choice.get("finish_reason"), choice.get("token_ids")
            if not isinstance(token_ids, list | None):
                raise GarbageError(f"token ids {token_ids!r:.40}")
            if token_ids is None and (reason is None or choice.get("text")):
                raise GenerationError(
                    f"{self._llm.server} sends words without their token ids: the engine is too old, "
                    "or of another kind than the server file says"
                )
            for token_id in token_ids or ():
                rows[index].take(token_id)
            if reason is not None:
                rows[index].finish(reason, choice.get("stop_reason", choice.get("matched_stop")))
            is_news = is_news or bool(token_ids) or reason is not None
        return is_news


def _models(connection: Connection) -> list[dict[str, Any]] | None:
    """Return what the server offers; None if it does not tell."""
    try:
        told = connection.ask("/v1/models")
    except Refusal as error:
        if error.status in (404, 405, 501):
            return None
        raise
    listed = told.get("data") if isinstance(told, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise GarbageError("a list of models without models")
    return listed


def _context_in(refusal: Refusal) -> int | None:
    """Return how many tokens a refusal says that the server reads at most."""
    found = _CONTEXT.search(refusal.said) if refusal.status == 400 else None
    return int(found[1]) if found else None


def _told(
    models: list[dict[str, Any]] | None, server: ServerFile
) -> tuple[tuple[Any, ...], int | None]:
    """Return what tells a model from others, and how many tokens it reads; of these what is told."""
    if models is None:
        return (), None
    by_name = {str(each.get("id")): each for each in models}
    base = server.model.partition(":")[0]  # SGLang writes base:adapter
    found = by_name.get(server.model) or by_name.get(base)
    if found is None:
        others = f"but {quoted(', '.join(by_name))}" if by_name else "or any other"
        raise GenerationError(f"{server} does not offer the model {server.model!r}, {others}")
    parent = by_name.get(str(found.get("parent")), {})  # of an adapter
    lengths = [each.get("max_model_len") for each in (found, parent)]
    length = next((x for x in lengths if type(x) is int and x > 0), None)
    return (found.get("root"), length), length


def _check_vocabulary(connection: Connection, server: ServerFile, vocab: Vocabulary) -> None:
    """Compare what some token ids are called there and here, where the server tells."""
    last = vocab.codebook_size - 1
    names = {
        vocab.first_code: image_token(0),
        vocab.first_code + last: image_token(last),
        vocab.begin_image: BEGIN_IMAGE,
        vocab.end_image: END_IMAGE,
    }
    other = GenerationError(
        f"{server} serves another model than that of the vocabulary {server.vocabulary!r}: the token "
        "ids of pictures differ. Name the model's own folder as vocabulary."
    )
    # Else SGLang may leave out what a folder calls special, such as the markers.
    asked = {"model": server.model, "skip_special_tokens": False}
    try:
        told = connection.ask("/detokenize", {**asked, "tokens": list(names)})
    except Refusal as error:
        if error.status in (400, 422):  # it does not know all of them
            raise other from error
        if error.status in (404, 405, 501):
            return
        raise
    text = told.get("prompt", told.get("text")) if isinstance(told, dict) else None
    if isinstance(text, str) and "".join(text.split()) != "".join(names.values()):
        raise other


def load_served_llm(
    path: str | Path, find_vocabulary: Callable[[str], Path | None] | None = None
) -> ServedLLM:
    """Open a SEED-LLaMA on a server; nothing is asked of the server yet.

    Args:
        path: a server file; see `read_server_file`.
        find_vocabulary: gives the folder or converted model that a name means, for those that are
            not beside the server file.

    Raises:
        CheckpointError: the server file is wrong, or a file of the vocabulary missing or damaged.
    """
    server = read_server_file(path)
    folder = find_llm_folder(server.vocabulary_place(find_vocabulary))
    config, vocab, fields = read_description(folder)
    end_ids = read_end_ids(folder, fields, vocab.size) | {vocab.eos}
    context = config.max_position_embeddings
    return ServedLLM(server, vocab, template_of(config), end_ids, context)
