"""``python -m explorer_mq``: the same as the ``explorer-mq`` command."""

from __future__ import annotations

import sys

from explorer_mq.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
