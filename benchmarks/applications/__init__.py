"""Libraries of applications, unchanged but for base URL and model name, against the proxy."""
