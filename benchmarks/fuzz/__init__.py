"""Fuzzing of parsers and servers."""
