"""Drawing: every function takes finished numbers and returns a matplotlib figure."""
