"""How good the generated text is: perplexity now; coherence and tasks build on the same functions."""
