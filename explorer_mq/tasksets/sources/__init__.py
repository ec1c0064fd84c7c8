"""Where rows come from: one kind of source a file, :mod:`.opening` picks the one a path means."""
