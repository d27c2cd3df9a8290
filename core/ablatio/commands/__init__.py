"""What the command line can do, a module per command; each imports the heavy things inside its own `run`."""
