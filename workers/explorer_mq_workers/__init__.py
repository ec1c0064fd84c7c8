"""The data plane: workers that lease slices, run them through an engine and report."""
