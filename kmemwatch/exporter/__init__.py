# SPDX-License-Identifier: GPL-2.0-only
"""A snapshot as Prometheus metrics.

published     the latest snapshot, and what the process that read it costs
metrics       which metrics there are, with their labels
selection     which cgroups and caches have series at all
snapshots     snapshots without the others, for JSON and the landing page
kubernetes    labels of pods and containers
folding       which cgroups have series of their own
series        snapshot -> series, in a loop over the metrics
formats       series -> text, in the format that a client accepts
daemon        metrics of the daemon itself
exposition    the answer to a scrape, made once for each snapshot and format
"""
