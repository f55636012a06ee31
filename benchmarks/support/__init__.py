"""Load generators and raw HTTP clients shared by benchmarks and tests."""
