"""Reports: read studies, compare arms, and write tables, Markdown and one HTML page."""
