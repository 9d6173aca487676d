"""Keys and values of running requests."""
