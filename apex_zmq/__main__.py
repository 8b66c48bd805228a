"""python -m apex_zmq PROGRAM: the programs under `bin/`."""

import pkgutil
import sys

from apex_zmq.errors import INSTALL

PYTHON = (3, 11)
# The only list of programs: each apex-NAME under bin/ and the function that it calls. setup.py reads it as text.
PROGRAMS = {
    "actor": "apex_zmq.cli.main:actor",
    "replay": "apex_zmq.cli.main:replay",
    "learner": "apex_zmq.cli.main:learner",
    "forwarder": "apex_zmq.cli.main:forwarder",
    "train": "apex_zmq.cli.main:train",
    "eval": "apex_zmq.cli.tools:evaluate",
    "play": "apex_zmq.cli.tools:play",
    "keys": "apex_zmq.cli.tools:keys",
    "doctor": "apex_zmq.cli.tools:doctor",
    "top": "apex_zmq.cli.tools:top",
}


def main() -> int:
    """Run the program that the first argument names; report a missing package or an old Python and return 2."""
    name, *arguments = sys.argv[1:]
    try:
        if sys.version_info < PYTHON:
            raise ImportError(
                "Python {}.{} is too old, {}.{} or newer is needed".format(*sys.version_info[:2], *PYTHON)
            )
        program = pkgutil.resolve_name(PROGRAMS[name])
    except ImportError as error:
        print(f"apex-{name}: error: cannot start: {error}; {INSTALL}", file=sys.stderr)
        return 2
    return int(program(arguments))


if __name__ == "__main__":
    sys.exit(main())
