"""Many runs at once: the grid of settings, the vmapped program, the table of results."""
