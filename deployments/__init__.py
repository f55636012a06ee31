"""The Ray Serve application for private completions; each replica is an HTTP ingress.

``app`` builds the application from ``settings``. ``api`` is the HTTP layer and does not depend on
an engine. ``service`` turns request frames into completions and does not depend on HTTP.
``engines`` holds the engine interface and its implementations, ``auth`` API keys and quotas,
``telemetry`` metrics, logs and traces.
"""
