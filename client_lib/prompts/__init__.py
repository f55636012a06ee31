"""From a prompt to noisy counts: spans, chat templates, padding, encoding, and reuse of counts."""
