"""The data formats that come with ringtmp, one file each. Importing this package registers them all."""

import pkgutil
from importlib import import_module

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")
