"""``python -m alrao_rl.report``."""

import sys

from alrao_rl.report.command import main

sys.exit(main())
