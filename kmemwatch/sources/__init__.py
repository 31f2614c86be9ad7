# SPDX-License-Identifier: GPL-2.0-only
"""The running kernel as a source of readings and events; the only package that knows bcc, and that only in `loader`."""
