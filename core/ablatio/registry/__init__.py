"""Registries of parts, the catalogue of what is installed, and plugin discovery."""
