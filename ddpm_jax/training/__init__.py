"""Training: the pmapped step, its state, the feed and the loop."""
