"""Training runs: options, presets, devices, checkpoints, metrics and the loop. Import from the file that has
it."""
