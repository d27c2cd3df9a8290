"""Filters of training documents: rules, models of the text, duplicates, personal data."""
