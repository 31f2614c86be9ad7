# SPDX-License-Identifier: GPL-2.0-only
"""Which cgroups and caches have series at all, and which labels a cgroup has besides its path. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kmemwatch.exporter import kubernetes
from kmemwatch.views.patterns import any_of

PATH, KUBERNETES = "path", "kubernetes"

Labeller = Callable[[str], tuple[str, ...]]


def _everything(text: str) -> bool:
    return True


@dataclass(frozen=True)
class SeriesSelection:
    """Which cgroups and caches have series. Its functions take values of labels, as in the output."""

    has_cgroup: Callable[[str], bool] = _everything
    has_cache: Callable[[str], bool] = _everything
    cgroup_labels: tuple[str, ...] = ()
    """Names of labels besides ``cgroup``."""
    label_cgroup: Labeller = field(default=lambda path: ())
    """Value of ``cgroup`` -> values of those labels."""

    @property
    def filters_cgroups(self) -> bool:
        """Some cgroups are excluded."""
        return self.has_cgroup is not _everything

    @property
    def filters_caches(self) -> bool:
        """Some caches are excluded."""
        return self.has_cache is not _everything


ALL = SeriesSelection()


@dataclass(frozen=True)
class SelectionOptions:
    """The options of the command line as text, which can be sent to another process."""

    cgroup_include: Sequence[str] = ()
    cgroup_exclude: Sequence[str] = ()
    cache_include: Sequence[str] = ()
    cache_exclude: Sequence[str] = ()
    naming: str = PATH

    @property
    def has_expressions(self) -> bool:
        """There is a regular expression."""
        return any((self.cgroup_include, self.cgroup_exclude, self.cache_include, self.cache_exclude))

    def selection(self) -> SeriesSelection:
        """Raises UsageError for an invalid expression, which names its option."""
        has_cgroup = _matcher("cgroup", self.cgroup_include, self.cgroup_exclude)
        has_cache = _matcher("cache", self.cache_include, self.cache_exclude)
        if self.naming == PATH:
            return SeriesSelection(has_cgroup, has_cache)
        return SeriesSelection(has_cgroup, has_cache, kubernetes.LABELS, kubernetes.labels)


def _matcher(what: str, include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """As in Prometheus' own exporters, expressions match whole names, and exclude wins over include."""
    wanted, unwanted = any_of(f"--{what}.include", include), any_of(f"--{what}.exclude", exclude)
    if wanted is None and unwanted is None:
        return _everything

    def has(name: str) -> bool:
        return (wanted is None or wanted.fullmatch(name)) and (unwanted is None or not unwanted.fullmatch(name))

    return has
