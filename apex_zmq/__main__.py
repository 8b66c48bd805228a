"""python -m apex_zmq PROGRAM: the programs under `bin/`, or what is missing for them."""

import sys

from apex_zmq.errors import INSTALL

PYTHON = (3, 11)


def main() -> int:
    """Run the program that the first argument names; without what it needs, say so and end with 2."""
    name, *arguments = sys.argv[1:]
    try:
        if sys.version_info < PYTHON:
            raise ImportError(
                "Python {}.{} is too old, {}.{} or newer is needed".format(*sys.version_info[:2], *PYTHON)
            )
        from apex_zmq.cli.main import PROGRAMS
    except ImportError as error:
        print(f"apex-{name}: error: nothing can run here: {error}; {INSTALL}", file=sys.stderr)
        return 2
    return PROGRAMS[name](arguments)


if __name__ == "__main__":
    sys.exit(main())
