"""What the command line calls, where a verb joins floors that know nothing of one another."""
