"""Hooks for external trainers: finished batches in, new weights out."""
