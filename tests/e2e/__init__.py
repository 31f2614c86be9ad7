# SPDX-License-Identifier: GPL-2.0-only
"""With the distribution's own Prometheus and Alertmanager: what users have."""
