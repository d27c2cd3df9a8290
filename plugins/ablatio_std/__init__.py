"""The built-in parts of ablatio: one module per kind or family, registered like any plugin's."""
