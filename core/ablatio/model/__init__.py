"""Models: building from a config, attention, decoding, PEFT, policy outputs, and their cost."""
