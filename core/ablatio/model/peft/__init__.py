"""Adapters beside frozen weights: attach, merge, apply, save."""
