"""Decoders: from released counts to the embeddings that the language model reads."""
