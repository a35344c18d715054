"""Training: state, step, mesh, clock, checkpoints, logs and the loop."""
