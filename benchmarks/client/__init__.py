"""Cost of the client: time, memory, install size."""
