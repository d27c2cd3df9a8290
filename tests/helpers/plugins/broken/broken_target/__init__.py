"""A plugin whose YAML names an object to build."""
