"""Attacks on released counts, one module each."""
