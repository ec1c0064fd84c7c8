"""Task sets: where tasks come from, in which order, and what is learned about them.

A row goes source -> formatter -> task; a selector says which rows are next, the scheduler mixes
several sets into steps. Everything is a pure function of settings, step number and the selectors'
state: a process that resumes at any step reads what the lost one would have read.
"""

from __future__ import annotations

# Settings hold task sets, and task sets are sections of settings: whoever is asked for first, the
# settings have to be imported first.
import explorer_mq.settings  # noqa: F401 - its side effect is the order of imports
