"""The Python API: what `import ablatio` offers beside the registries.

Each name stands in the module of its subject and reaches the user as `ablatio.NAME`, which imports it on first use.
The command line calls the same functions.
"""
