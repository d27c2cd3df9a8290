"""Recipes: several runs, each starting from earlier ones."""
