"""One module per kind, and `common` for all of them; `ablatio.testing.pytest_plugin` hands them the parts."""
