"""The kernels themselves. Every file here imports triton, so these are imported only inside functions."""
