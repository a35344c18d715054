"""Runs shown: the page, its tables and charts, and plots for papers."""
