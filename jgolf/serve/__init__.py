"""A page on this machine on which a model goes on with what is typed."""
