"""What every program under `bin/` does with its arguments and its errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from apex_zmq.cli import logs
from apex_zmq.config import loading
from apex_zmq.config.settings import Config
from apex_zmq.envs.games import check_env
from apex_zmq.errors import UserError


def main(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace, Config], int],
    argv: Sequence[str] | None,
    overrides: Callable[[argparse.Namespace], list[str]] = lambda _: [],
    *,
    addressed: bool = True,
) -> int:
    """Parse, resolve the config (file < environment < flags < --set), run; bad input ends with 2.

    overrides: what the program's own flags set. addressed: as for `check.validate`.
    """
    arguments = parser.parse_args(argv)
    try:
        config = Config()
        if "config" in arguments:
            config = loading.load(arguments.config, [*overrides(arguments), *arguments.overrides], addressed=addressed)
            check_env(config.env)
        return run(arguments, config)
    except (UserError, PermissionError) as error:
        message = str(error)
        if isinstance(error, PermissionError):  # asking whether a path is there may be denied already
            message = f"cannot use {error.filename}: {error.strerror}; change its owner, or name another"
        print(f"{parser.prog}: error: {message}", file=sys.stderr)
        logs.keep(message)
        return 2
    except KeyboardInterrupt:
        return 130
