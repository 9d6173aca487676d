"""Values of any kind: copied, compared, and fingerprinted. Knows nothing about who asks."""
