"""A model as a lossless compressor: the true size beside the claim that bits per byte are."""
