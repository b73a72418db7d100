"""What is left of training and what is done with it: run directories, checkpoints, logs, `Run`, samples, weights."""
