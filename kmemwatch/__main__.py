# SPDX-License-Identifier: GPL-2.0-only
"""`python -m kmemwatch`."""

from kmemwatch.cli.main import main

main()
