"""Where metrics go: JSONL always, other tools as plug-ins that can neither stop nor slow the run.

``fanout`` is what a process holds; it writes ``jsonl`` itself and gives every other monitor a
``lane``: a bounded queue and a thread. ``protocol`` is what a plug-in implements, one file per tool.
"""

# First, so that the settings may have a section of this package whichever is imported first.
import explorer_mq.settings  # noqa: F401
