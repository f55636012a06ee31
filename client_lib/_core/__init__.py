"""The IO-free logic of the client and the two drivers that run it."""
