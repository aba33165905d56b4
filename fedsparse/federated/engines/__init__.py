"""Who runs the clients of a round."""
