# SPDX-License-Identifier: GPL-2.0-only
"""The one field table: what every figure is called, means, is measured in and is read from.

base       Field and MetricTable
measures   the figures of one cache, memcg, pair, id, recharge, and their rates
derived    figures that follow from a whole Snapshot
metrics    METRICS: labels and the fields that have a metric, for the exporter
rows       what one row of a view is
views      VIEWS: the columns of `top`, for the terminal, CSV and JSON rows
parts      what one row of a view consists of, for its details
"""

from __future__ import annotations

from kmemwatch.fields.base import COUNTER, GAUGE, HISTOGRAM, INFO, Field, MetricTable, Value
from kmemwatch.fields.metrics import METRICS

__all__ = ["COUNTER", "GAUGE", "HISTOGRAM", "INFO", "METRICS", "Field", "MetricTable", "Value"]
