# SPDX-License-Identifier: GPL-2.0-only
"""Where readings come from: compile, attach, read maps; the only package that knows bcc."""
