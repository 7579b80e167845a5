"""The errors this library raises for anything a user or a file can cause.

Every message says what was given, what is needed and what to do about it. Each class also derives
from the built-in error a Python caller would expect.
"""


def in_one_line(text: object) -> str:
    """Return a text or a path with escapes for characters that a console hides or obeys."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def first_line(error: BaseException) -> str:
    """Return what an error of another library says first, or else its name."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


class SeedError(Exception):
    """Base of every error raised on purpose by this library."""


class CodesError(SeedError, ValueError):
    """Codes of the wrong count, range or family."""


class PictureError(SeedError, ValueError):
    """A picture that cannot be encoded, such as an empty one."""


class EmbeddingError(SeedError, ValueError):
    """Image embeddings that do not fit one another, or what they are meant for."""


class PromptError(SeedError, ValueError):
    """A prompt that does not fit its pictures, or is empty."""


class OptionError(SeedError, ValueError):
    """An option outside its range, or an output path that cannot be written to."""


class CheckpointError(SeedError, RuntimeError):
    """A weight file that is missing, damaged, unsafe or of another model."""


class GenerationError(SeedError, RuntimeError):
    """A generation that cannot start or cannot go on."""


class DownloadError(SeedError, OSError):
    """A model that cannot be fetched: no connection, a refusal, no room, a file in the way."""
