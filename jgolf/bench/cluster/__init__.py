"""`jgolf bench cluster`: what several devices of one host do, measured by one command."""
