"""The contract between the processes of explorer-mq: messages, ids, subjects, experiences, errors.

No I/O, no asyncio, no torch: any process that speaks to a run can import this package alone.
"""
