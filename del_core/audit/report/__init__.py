"""The report of an audit: page, charts, style and files."""
