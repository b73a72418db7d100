"""Training: the tasks, the pmapped step, checkpoints, run directories and the loop."""
