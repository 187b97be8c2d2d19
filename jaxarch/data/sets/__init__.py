"""The data sets: the folder is the registry, `data = "x"` in a recipe calls `load` of `x.py`."""
