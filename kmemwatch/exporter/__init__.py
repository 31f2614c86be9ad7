# SPDX-License-Identifier: GPL-2.0-only
"""Prometheus collector and web server of `serve`."""
