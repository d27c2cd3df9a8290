"""Contract suites of the kinds that this plugin adds."""
