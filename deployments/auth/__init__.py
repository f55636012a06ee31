"""Authentication by API keys, and quotas over all replicas."""
