"""Its YAML names an object to build."""
