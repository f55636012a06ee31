"""Prompts as token ids: the begin-of-text token, and spans that are tokenized on their own."""

from del_core.prompts.tokenizer import SpanTokenizer, begin_of_text_id, load_tokenizer, special_token_id

__all__ = ["SpanTokenizer", "begin_of_text_id", "load_tokenizer", "special_token_id"]
