"""One module per kind, and `common` for all of them; `ablatio.testing.plugin` hands them the parts."""
