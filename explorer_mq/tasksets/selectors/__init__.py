"""Which rows come next: one kind of selector a file, :mod:`.opening` picks one by name."""
