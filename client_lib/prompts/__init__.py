"""Prompts: spans, chat templates, padding, encoding, and reuse of counts."""
