"""Read studies, runs, curves and recipes from their folders."""
