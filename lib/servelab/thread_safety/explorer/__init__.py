"""Every interleaving of a few threads, without luck. Needs no torch."""
