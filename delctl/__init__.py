"""The command line of DEL Serve. Each command imports the layer that it works with when it runs."""
