"""From and to PyTorch: checkpoints, artifacts, and the cross-check against a training script."""
