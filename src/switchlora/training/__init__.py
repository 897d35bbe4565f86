"""Training runs: options, presets, models, checkpoints, metrics and the loop. Import from the file that has it."""
