"""`python -m edgestill`."""

import sys

from edgestill.cli import main

sys.exit(main())
