"""The start of ``delctl``: Ctrl-C ends it without a traceback, even before anything is imported."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

STOPPED = 130
"""Exit code after Ctrl-C."""


def main() -> NoReturn:
    """Import the command line and run it; until then Ctrl-C ends the process at once."""
    signal.signal(signal.SIGINT, lambda signum, frame: _stop())
    from delctl.main import main as run_command_line

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_command_line()
    except KeyboardInterrupt:  # between two commands' own handling
        _stop()


def _stop() -> NoReturn:
    # Nothing is open yet, or everything is closed: there is nothing to clean up.
    os.write(2, b"delctl: stopped\n")
    os._exit(STOPPED)


if __name__ == "__main__":
    main()
