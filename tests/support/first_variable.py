"""Sets the environment's first variable anew when it is imported; see test_process_title."""

import os

os.environ["THE_FIRST"] = "2"
