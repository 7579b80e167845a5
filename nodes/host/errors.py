"""How the host shows our errors."""

from collections.abc import Callable

from ...seed_core.errors import SeedError

# What `validate_inputs` has for an input without a wire; with one, the value that will come is None.
NOT_CONNECTED = object()


def message_of(check: Callable[[], object]) -> bool | str:
    """Return the message of our error that a check raises, or True, as `validate_inputs` gives it."""
    try:
        check()
    except SeedError as error:
        return str(error)
    return True


def name_for_people(name: str) -> None:
    """Give our classes of errors a short module, which the host shows in front of each message.

    A pack's own modules are called by the path of its folder.
    """
    classes = [SeedError]
    for each in classes:
        each.__module__ = name
        classes += each.__subclasses__()
