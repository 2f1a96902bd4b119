"""Durable checkpoints: what is saved, where it lies, and how it comes back at any world size."""
