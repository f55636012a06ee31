"""Configuration of clusters: Serve config files, and the environment of Ray's processes."""
