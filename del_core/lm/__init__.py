"""The frozen language model: weights, tokenized text, device, noise, perplexity. Requires torch."""
