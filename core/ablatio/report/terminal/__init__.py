"""Tables for the terminal: plans, live progress, stages, arms."""
