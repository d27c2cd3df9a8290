"""`ablatio new-plugin`: templates of a plugin distribution."""
