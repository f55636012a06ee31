"""From a request frame to a completion, without HTTP."""
