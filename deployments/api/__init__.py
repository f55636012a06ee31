"""The HTTP surface: routes, event streams, error objects, middleware."""
