"""``python -m ipt_fast.cli``: the command ``ipt-fast``, wherever its script is not on the path."""

import sys

from ipt_fast.cli import main

sys.exit(main())
