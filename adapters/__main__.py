"""``python -m kcd_adapters`` is ``kcd``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
