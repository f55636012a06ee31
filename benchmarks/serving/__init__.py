"""Throughput and latency of the serving path beside other servers."""
