"""Models the engine can run: scripted ones, and real ones from transformers."""
