"""A text of one's own and so many minutes → a trained model: what fits is chosen, commands do it."""
