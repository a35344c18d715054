"""The file that is submitted: storage forms packed into few bytes."""
