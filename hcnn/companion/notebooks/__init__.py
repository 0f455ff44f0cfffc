"""The notebooks: their execution with other parameters."""
