"""Train one run: build it from its config, execute the training loop, read and write its run folder."""
