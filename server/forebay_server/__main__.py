"""`python -m forebay_server` is `forebay`."""

from forebay_server.cli import main

main()
