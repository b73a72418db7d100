"""Evaluation of trained runs: what `--mode=eval` does."""
