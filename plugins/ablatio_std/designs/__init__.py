"""Designs choose the arms of a sweep: factorial designs, screening designs, samples of a space, searches."""
