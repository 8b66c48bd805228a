"""Log lines of a role: on standard output, and in rotated files."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal

from apex_zmq.errors import ConfigError

Format = Literal["text", "json"]
FILE_BYTES = 10_000_000
OLD_FILES = 3  # number of rotated files kept: <role>.log.1 and so on
PROGRESS_IN_FILE = "APEX_PROGRESS_IN_FILE"  # environment variable; if set, progress lines go only to the log file


def moves_cursor() -> bool:
    """Whether standard output is a terminal that can redraw lines, unlike TERM=dumb."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


class _File(RotatingFileHandler):
    """A log file. If the disk is full, lines are lost, an error is printed once, and the program continues."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not self._failed:
            self._failed = True
            print(f"{self.baseFilename} loses lines, the program continues: {sys.exc_info()[1]}", file=sys.stderr)


class _JsonFormatter(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        return json_line(record.created, record.levelname, self._role, super().format(record))


def json_line(created: float, level: str, role: str, message: str) -> str:
    """One log line as an object; created: unix seconds, written as ISO 8601 in UTC."""
    time = datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": time, "level": level, "role": role, "message": message})


def configure(role: str, level: str, log_format: Format, directory: Path | None) -> None:
    """Log to standard output and, with a directory, to `<directory>/<role>.log`; uncaught exceptions too.

    Raises:
        ConfigError: the directory cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if PROGRESS_IN_FILE in os.environ:
        from apex_zmq.watch.stats import PROGRESS_LOG

        handlers[0].addFilter(lambda record: record.name != PROGRESS_LOG)
    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handlers.append(_File(directory / f"{role}.log", maxBytes=FILE_BYTES, backupCount=OLD_FILES))
        except OSError as error:
            raise ConfigError(f"cannot write logs in {directory}: {error.strerror}; choose another --log-dir") from None
    text = logging.Formatter(f"%(asctime)s %(levelname)-7s {role} %(message)s")
    for handler in handlers:
        handler.setFormatter(_JsonFormatter(role) if log_format == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=handlers)
    sys.excepthook = lambda kind, error, _: logging.critical("uncaught %s", kind.__name__, exc_info=error)
    threading.excepthook = lambda args: logging.critical("uncaught in a thread", exc_info=args.exc_value)


def keep(message: str) -> None:
    """Write an error that was already printed to the log file, if one is configured."""
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RotatingFileHandler):
            handler.handle(record)
