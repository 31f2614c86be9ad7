# SPDX-License-Identifier: GPL-2.0-only
"""HTTP for `serve`: the server, TLS, users, limits, privileges. Knows nothing of metrics."""
