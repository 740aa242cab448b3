"""`python -m forebay_server` is `forebay`."""

import sys

from forebay_server.cli import main

sys.exit(main())
