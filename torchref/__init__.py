"""The reference: the catalog's architectures in PyTorch, file for file the same as `jaxarch`."""
