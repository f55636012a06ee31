"""The page of ``delctl playground``, and the application that serves it on this machine."""
