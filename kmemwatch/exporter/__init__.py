# SPDX-License-Identifier: GPL-2.0-only
"""A snapshot as Prometheus metrics.

metrics       which metrics there are, with their labels
selection     which cgroups and caches have series at all
exclusion     the snapshot without the others
kubernetes    labels of pods and containers
folding       which cgroups have series of their own
series        Snapshot -> series, in a loop over the metrics
collector     series -> prometheus_client's families
text          series -> text, as prometheus_client writes it, faster
own           metrics of the exporter itself
exposition    what a scrape gets, made once for each snapshot and format
"""
