"""What commands have in common when they cannot do what is asked: one sentence, and the right exit code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer


class UsageError(ValueError):
    """The command line asks for something that does not exist; the message is one sentence."""


@contextmanager
def exit_codes(*others: type[Exception]) -> Iterator[None]:
    """Ends the command with 2 after wrong usage, with 130 after Ctrl-C; never with a traceback.

    Args:
        others: errors, besides UsageError, whose message is a sentence for the user too; of what the system
            refuses (OSError) one is made.
    """
    sentences: tuple[type[Exception], ...] = (UsageError, *others)
    try:
        yield
    except sentences as error:
        said = str(error)
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            said = f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}."
        typer.echo(f"error: {said}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(130) from None
