"""Metrics, logs, traces and the autoscaling policy of a replica."""
