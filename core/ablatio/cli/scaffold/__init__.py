"""`ablatio new-plugin`: creates a plugin distribution from templates."""
