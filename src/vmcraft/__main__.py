"""python -m vmcraft."""

import sys

from vmcraft.cli.main import main

sys.exit(main())
