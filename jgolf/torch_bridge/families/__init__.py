"""What each family of PyTorch scripts calls the parameters, one file a family."""
