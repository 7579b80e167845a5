"""Replies as they arrive from a server, each token checked when it comes."""

from __future__ import annotations

from ..errors import GenerationError
from ..llm.sampling import ImageTokens


class Row:
    """One reply: text and whole pictures, as long as was asked for at most.

    A picture that no longer fits is not begun, as in `llm.sampling.PictureGrammar`: the reply waits
    where the server began one, to be gone on with in words.

    Args:
        server: what messages call it.
        tokens: which token ids are pictures.
        size: token ids of the vocabulary.
        eos: the one that ends a text.
        end_ids: any of these ends the reply.
        length: the most tokens of it.
        seed: of its random numbers.
    """

    def __init__(
        self,
        server: str,
        tokens: ImageTokens,
        size: int,
        eos: int,
        end_ids: frozenset[int],
        length: int,
        seed: int,
    ) -> None:
        self.token_ids: list[int] = []
        self.length = length
        self.seed = seed
        self.is_finished = False  # the server has said so, or the reply has its end token
        self.lacks_room = False  # the server began a picture that no longer fits
        self._server = server
        self._tokens = tokens
        self._size = size
        self._eos = eos
        self._end_ids = end_ids
        self._remaining = 0  # tokens of the picture it is in, the closing marker included
        self._has_pictures = True

    @property
    def is_waiting(self) -> bool:
        """Whether more of it is to come in the answer that was begun."""
        return not self.is_finished and not self.lacks_room

    @property
    def room(self) -> int:
        """How many tokens it can still have."""
        return self.length - len(self.token_ids)

    def has_room_for_a_picture(self) -> bool:
        """Tell whether a whole picture still fits."""
        return self.room >= self._tokens.per_image + 2

    def go_on(self, has_pictures: bool) -> None:
        """Expect more, in which pictures may be begun or not."""
        self.lacks_room = False
        self._has_pictures = has_pictures

    def take(self, token_id: object) -> None:
        """Add a token.

        Raises:
            GenerationError: it is not one of the vocabulary, or may not stand there.
        """
        if not self.is_waiting:
            return
        if type(token_id) is not int or not 0 <= token_id < self._size:
            raise GenerationError(
                f"{self._server} sent the token id {token_id!r:.40}, and the vocabulary has 0.."
                f"{self._size - 1}: it serves another model. Name the model's own folder as vocabulary."
            )
        if not self.room:
            raise GenerationError(
                f"{self._server} sent more than the {self.length} tokens that it was asked for"
            )
        if not self._remaining and token_id == self._tokens.begin and self._has_pictures:
            if not self.has_room_for_a_picture():
                self.lacks_room = True
                return
            self._remaining = self._tokens.per_image + 1
        else:
            self._check(token_id)
            self.is_finished = not self._remaining and token_id in self._end_ids
            self._remaining = max(self._remaining - 1, 0)
        self.token_ids.append(token_id)

    def _check(self, token_id: int) -> None:
        tokens = self._tokens
        is_code = 0 <= token_id - tokens.first_code < tokens.codebook_size
        if self._remaining > 1:
            is_right = is_code
        elif self._remaining == 1:
            is_right = token_id == tokens.end
        else:
            is_right = not is_code and token_id not in (tokens.begin, tokens.end)
        if not is_right:
            raise GenerationError(
                f"{self._server} does not keep to the grammar that it is sent, so pictures would not "
                "be whole: start the engine with structured outputs by xgrammar"
            )

    def finish(self, reason: object, stopped_by: object) -> None:
        """Take note that the server ended the reply, by a token or for lack of room.

        Raises:
            GenerationError: it ended in a picture, or for another reason.
        """
        if not self.is_waiting:
            return
        if reason not in ("stop", "length"):
            raise GenerationError(f"{self._server} broke the reply off: {reason!r:.80}")
        if self._remaining:
            raise GenerationError(f"{self._server} ended the reply in the middle of a picture")
        if reason == "stop":  # engines may leave out the token that did it
            ends = isinstance(stopped_by, int) and stopped_by in self._end_ids
            self.token_ids.append(stopped_by if ends else self._eos)  # type: ignore[arg-type]
        elif not self.token_ids:
            raise GenerationError(f"{self._server} sent an empty reply")
        self.is_finished = True
