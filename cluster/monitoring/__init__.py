"""Grafana dashboard of a service."""
