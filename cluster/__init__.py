"""Ways to run the application: a local cluster, config files, training workers."""
