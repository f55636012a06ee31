"""A wrong clock for the Python processes of a simulated machine.

Python imports this module at its start if the folder is on ``PYTHONPATH``. Intervals
(``time.monotonic``) stay right.
"""

import os
import time

_AHEAD_S = float(os.environ["DEL_CLOCK_AHEAD_S"])
_time, _time_ns = time.time, time.time_ns


def _wrong_time() -> float:
    return _time() + _AHEAD_S


def _wrong_time_ns() -> int:
    return _time_ns() + round(_AHEAD_S * 1e9)


time.time, time.time_ns = _wrong_time, _wrong_time_ns
