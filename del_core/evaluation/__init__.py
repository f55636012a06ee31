"""Quality of the text that the language model writes behind each variant of a bundle."""
