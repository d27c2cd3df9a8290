"""A plugin whose YAML changes Hydra's own settings."""
