"""The comparison on a pretrained model, whose bundle ships: SmolLM2."""
