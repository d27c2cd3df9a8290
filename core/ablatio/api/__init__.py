"""The Python API: what `import ablatio` offers besides the registries.

Each function is defined in the module of its subject and is available as `ablatio.NAME`, which imports that module on
first use.  The command line calls the same functions.
"""

from ablatio.storage import before_torch

before_torch.set_defaults()
