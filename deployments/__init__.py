"""The Ray Serve application for private completions; each replica is an HTTP ingress.

``api`` (HTTP) does not depend on an engine, ``service`` (frames to completions) not on HTTP.
"""
