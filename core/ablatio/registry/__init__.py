"""Registries of parts, plugin discovery, and the catalogue of installed parts."""
