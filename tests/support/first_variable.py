"""Sets the first variable of the environment on import; see test_process_title."""

import os

os.environ["THE_FIRST"] = "2"
