"""What runs wrote, read back: histories, plots, the page."""
