"""HTTP API: routes, event streams, error objects, middleware."""
