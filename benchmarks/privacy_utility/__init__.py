"""Text quality at equal attack success: this project, DEL as published, and other methods."""

# Registers the decoders with which this project's encoders are compared.
from benchmarks import posterior_decoders as posterior_decoders
