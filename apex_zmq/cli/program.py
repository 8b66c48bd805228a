"""Handling of errors and Ctrl-C, common to all programs under `bin/`."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from apex_zmq import __version__
from apex_zmq.cli import logs
from apex_zmq.cli.options import Parser
from apex_zmq.errors import UserError

EXIT_BAD_INPUT = 2
EXIT_BROKEN_PIPE = 128 + 13
Argv = Sequence[str] | None  # None: sys.argv


class Program(Protocol):
    """A program under `bin/`; returns its exit code."""

    def __call__(self, argv: Argv = None) -> int: ...  # noqa: D102


def program(name: str, description: str) -> Callable[[Callable[[Parser, Argv], int]], Program]:
    """Decorator of a function that adds its options to a parser, parses `argv` with it and runs the program.

    A `UserError` is printed as one line and ends the program with exit code 2, Ctrl-C with 130, and a reader of its
    output that is gone with 141, as SIGPIPE would.
    """

    def decorate(run: Callable[[Parser, Argv], int]) -> Program:
        @functools.wraps(run)
        def call(argv: Argv = None) -> int:
            parser = Parser(name, description=description)
            parser.add_argument("--version", action="version", version=__version__)
            try:
                return run(parser, argv)
            except UserError as error:
                message = str(error)
            except PermissionError as error:  # Path.exists raises it too
                message = f"cannot use {error.filename}: {error.strerror}; change its permissions, or choose another"
            except KeyboardInterrupt:
                return 130
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at the end
                return EXIT_BROKEN_PIPE
            print(f"{name}: error: {message}", file=sys.stderr)
            logs.keep(message)
            return EXIT_BAD_INPUT

        return call

    return decorate
