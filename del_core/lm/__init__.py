"""The frozen language model: weights, tokenised text, device, precision, perplexity (needs torch)."""
