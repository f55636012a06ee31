"""The audit's report: a self-contained HTML page and its JSON."""
