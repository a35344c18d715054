"""A run's weights → an artifact, read back from the disk and scored."""
