"""Its YAML sets Hydra itself."""
