"""Observations of requests: metrics, traces, logs, and the autoscaling signal."""
