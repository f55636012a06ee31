"""Attacks on what the server receives: what the noise really protects, beside what is proven."""
