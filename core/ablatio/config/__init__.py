"""The run config: typed sections, rules, YAML files, Hydra sources, composition."""
