"""Optimizers that exist to be compared with, where no library's own can be used as it is; see `methods`."""
