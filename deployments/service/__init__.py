"""From a request frame to a completion; knows no HTTP."""
