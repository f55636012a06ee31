"""OpenAI's published specification against the proxy."""
