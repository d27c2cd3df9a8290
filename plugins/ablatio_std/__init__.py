"""The built-in parts of ablatio: one package per kind, registered through the same entry point as any plugin's."""
