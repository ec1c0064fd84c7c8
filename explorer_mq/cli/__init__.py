"""The command line: ``main`` maps errors to exit codes, one file per group of commands.

Nothing here imports NATS, torch or the settings before a command needs them, so that help and
completion stay quick.
"""
