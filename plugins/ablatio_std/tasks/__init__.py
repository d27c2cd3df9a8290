"""Tasks: what a run trains on, one module each; modules with a leading underscore are shared by several tasks."""
