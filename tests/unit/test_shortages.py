# SPDX-License-Identifier: GPL-2.0-only
"""A shortage is not a fact about the kernel: wherever an error becomes one, or a reason, it is told apart."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kmemwatch.attach import child as attach
from kmemwatch.attach import discover, handover, warm_start
from kmemwatch.attach import load as loader
from kmemwatch.attach.plan import plan
from kmemwatch.errors import KmemwatchError, ShortageError, UnsupportedError
from kmemwatch.kernel import bpf_calls, btf, cgroupfs, facts, libbpf
from kmemwatch.maps import handles as maps
from kmemwatch.source import bpf_source
from kmemwatch.source.losses import KprobeMisses
from kmemwatch.web import privileges
from tests.unit.fake_source import recorded_facts
from tests.unit.test_attach_plan import LOCKED

NUMBERS = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.ENOSPC, errno.EDQUOT,
           errno.ETIMEDOUT]  # fmt: skip
shortages = pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.__getitem__)
FILE = Path("/proc/self/status")


def failing(number: int) -> Callable[..., Any]:
    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def throwing(error: Exception) -> Callable[..., Any]:
    def throw(*args: Any, **options: Any) -> Any:
        raise error

    return throw


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`files(number)`: from now on nothing can be opened."""

    def make(number: int) -> None:
        monkeypatch.setattr("pathlib.Path.open", failing(number))
        monkeypatch.setattr("io.open", failing(number))

    return make


LOOKS: dict[str, Callable[[], Any]] = {
    "symbols": lambda: facts.symbol_addresses(["kfree"], FILE),
    "the hierarchy": cgroupfs.find_memory,
    "why there is none": cgroupfs.why_not_found,
    "the own cgroup": lambda: cgroupfs.own_path(cgroupfs.Hierarchy(1, 1, None), FILE),
    "the root cgroup": lambda: cgroupfs.join_root(cgroupfs.Hierarchy(1, 1, "/proc/self")),
    "possible CPUs": facts._possible_cpus,
    "kcore": lambda: facts._starts_with(FILE, b"x"),
    "privileges": lambda: facts._privileged(True),
    "lockdown": lambda: facts._lockdown(FILE),
    "a macro": lambda: facts._gfp_account(FILE),
    "BTF": lambda: btf.Btf(FILE),
    "a constant of BTF": lambda: btf.find_anonymous_constant("A", "A", FILE),
    "nodes": discover.possible_nodes,
    "the boot": discover.boot_id,
    "the host": lambda: warm_start.key(()),
}
"""What is looked up in files."""


@shortages
@pytest.mark.parametrize("what", LOOKS)
def test_a_file_that_cannot_be_opened_for_want_of_something(
    files: Callable[[int], None], what: str, number: int
) -> None:
    files(number)
    with pytest.raises(ShortageError):
        LOOKS[what]()


@pytest.mark.parametrize("what", sorted(set(LOOKS) - {"BTF", "the host"}))
def test_a_file_that_is_not_there_is_a_fact(files: Callable[[int], None], what: str) -> None:
    files(errno.ENOENT)
    assert not LOOKS[what]() or what in ("why there is none", "nodes")


@shortages
def test_facts_that_could_not_be_looked_up_are_unknown_and_nothing_is_planned(
    files: Callable[[int], None], number: int
) -> None:
    files(number)
    found = facts.gather()
    assert found.shortage is not None
    assert (found.btf, found.symbols, found.hierarchy, found.privileged) == (None, None, None, None)
    with pytest.raises(ShortageError):
        plan(found)


@shortages
def test_a_trial_program_that_was_not_tried(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(libbpf, "has", lambda name: True)
    monkeypatch.setattr(libbpf, "library", lambda: SimpleNamespace(bpf_prog_load=lambda *args: -number))
    known: Any = SimpleNamespace(function_id=lambda name: 7)
    with pytest.raises(ShortageError):
        facts.try_fentry(known, True)
    assert facts.try_fentry(known, False) == (None, None), "without privileges a refusal says nothing"


def test_a_trial_program_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "has", lambda name: True)
    monkeypatch.setattr(libbpf, "library", lambda: SimpleNamespace(bpf_prog_load=lambda *args: -errno.EINVAL))
    known: Any = SimpleNamespace(function_id=lambda name: 7)
    assert facts.try_fentry(known, True) == (False, "the kernel refuses a test program for kfree: Invalid argument")


@pytest.mark.parametrize("said", ["Too many open files", "Error 24", "failed to map segment from shared object"])
def test_a_library_that_cannot_be_loaded_for_want_of_something(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    def fail(name: str, **options: Any) -> Any:
        raise OSError(f"{name}: cannot open shared object file: {said}")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    with pytest.raises(ShortageError):
        libbpf.library.__wrapped__()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_the_number_of_cpus(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(libbpf, "library", lambda: SimpleNamespace(libbpf_num_possible_cpus=lambda: -number))
    with pytest.raises(OSError, match=os.strerror(number)):
        maps.possible_cpus()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOENT])
def test_a_number_of_cpus_that_cannot_be_told(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(libbpf, "library", lambda: SimpleNamespace(libbpf_num_possible_cpus=lambda: -number))
    monkeypatch.setattr(libbpf, "error_text", os.strerror)
    with pytest.raises(
        UnsupportedError, match=r"^/sys/devices/system/cpu/possible: cannot be read as a list of CPUs: "
    ):
        maps.possible_cpus()


class FakePeek:
    def __init__(self, number: int) -> None:
        self._fail = failing(number)

    def __getattr__(self, name: str) -> Any:
        return self._fail


@shortages
def test_what_kprobes_miss(number: int) -> None:
    peek: Any = FakePeek(number)
    with pytest.raises(ShortageError):
        KprobeMisses(peek, recorded_facts(), {"free/kprobe:kfree": 3})


# Attaching


def attempt(number: int | None) -> Any:
    """A `loader._Attempt` whose programs all fail with this error."""
    made: Any = object.__new__(loader._Attempt)

    class Stderr:
        def __enter__(self) -> None: ...
        def __exit__(self, *args: object) -> None: ...
        def text(self) -> str:
            return ""

        def reason(self) -> str | None:
            return None

    def fail(*args: Any) -> None:
        assert number is not None
        raise OSError(number, os.strerror(number))

    made._stderr, made._attach_programs = Stderr(), fail
    made._facts = recorded_facts()
    return made


def first_signal() -> Any:
    return next(signal for signal in plan(recorded_facts()).signals if signal.name == "alloc")


@shortages
def test_a_probe_that_was_not_attached_for_want_of_something_is_not_refused(number: int) -> None:
    with pytest.raises(ShortageError, match="the probes cannot be attached"):
        attempt(number)._attach_signal(first_signal())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM, errno.ENOENT, errno.EBUSY])
def test_a_probe_that_is_refused_is_refused(number: int) -> None:
    with pytest.raises(loader._Refused, match=os.strerror(number)):
        attempt(number)._attach_signal(first_signal())


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "x"), MemoryError(), Exception("Too many open files")])
def test_a_compilation_that_ran_short(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Bpf:
        def __init__(self, **options: Any) -> None:
            raise error

    made = attempt(None)
    made._plan = SimpleNamespace(cflags=list)
    monkeypatch.setattr(loader, "source_text", lambda chosen: "")
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/")
    with pytest.raises(ShortageError):
        made._compile(SimpleNamespace(BPF=Bpf), Path("/"))


@shortages
def test_what_could_not_be_learned_for_want_of_something(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    made = attempt(None)
    made._programs = {name: SimpleNamespace(fd=-1) for name in ("walk", "peek", "peek_many")}
    made._maps, made._plan = {}, SimpleNamespace(defines=SimpleNamespace(values={"STATS_COUNT": 1}))
    monkeypatch.setattr(loader, "Peek", lambda *args: FakePeek(number))
    monkeypatch.setattr(discover, "stats_index", lambda *args: None)
    with pytest.raises(ShortageError):
        made._learn()


@pytest.mark.parametrize(("failures", "learned"), [(2, 64), (99, None)])
def test_what_changes_while_it_is_learned_is_read_again(
    monkeypatch: pytest.MonkeyPatch, failures: int, learned: int | None
) -> None:
    made = attempt(None)
    made._programs = {name: SimpleNamespace(fd=-1) for name in ("walk", "peek", "peek_many")}
    made._maps, made._plan, made._facts = {}, SimpleNamespace(defines=SimpleNamespace(values={"STATS_COUNT": 1})), None
    monkeypatch.setattr(loader, "Peek", lambda *args: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(discover, "stats_index", lambda *args: None)
    monkeypatch.setattr(discover, "first_cache", lambda *args: 8)
    monkeypatch.setattr(discover, "CacheList", lambda *args: SimpleNamespace(read=list))
    monkeypatch.setattr(discover, "slab_account_flag", lambda *args: 1)
    left = [OSError("kernel memory cannot be read")] * failures

    def page_base(*args: object) -> int:
        if left:
            raise left.pop()
        return 64

    monkeypatch.setattr(discover, "page_base", page_base)
    found = made._learn()
    assert (found["first_cache"], found.get("page_base")) == (8, learned)
    assert ("learn_error" in found) == (learned is None)


# While it reads


def reading(number: int) -> Any:
    source = object.__new__(bpf_source.BpfSource)
    source._read_memcgs = failing(number)  # type: ignore[method-assign]
    return source


@shortages
def test_what_cannot_be_read_any_more_for_want_of_something_is_in_plain_words(number: int) -> None:
    with pytest.raises(ShortageError, match=r"^reading the BPF maps: [a-z]") as caught:
        reading(number).read()
    assert "Errno" not in str(caught.value)
    assert caught.value.hint


def test_what_the_kernel_refuses_to_read_is_told_without_a_number() -> None:
    with pytest.raises(KmemwatchError, match=r"^reading the BPF maps: Operation not permitted$"):
        reading(errno.EPERM).read()


# What is kept


def loaded(**changes: Any) -> Any:
    told = handover.Manifest(
        recorded_facts(),
        (handover.ProbeResult("alloc", "raw_tp:x", False, None), handover.ProbeResult("ids", None, False, "x", False)),
        (), (), 7, stats_index={}, first_cache=8, page_base=16, slab_account=1,
    )  # fmt: skip
    return loader.Loaded(replace(told, **changes), (), ())


def test_only_a_complete_start_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmemwatch.kernel.bpf_calls.available", lambda: True)
    monkeypatch.setattr(warm_start, "_UNIX_MODULE", Path("/none"))
    assert warm_start.image_of(loaded(), {}) is not None
    refused = handover.ProbeResult("free", None, True, "raw_tp: kfree: Invalid argument")
    assert refused.status == "missing"
    assert warm_start.image_of(loaded(probes=(refused,)), {}) is not None
    assert warm_start.image_of(replace(loaded(probes=(refused,)), may_do_better=True), {}) is None
    for changes in (
        {"learn_error": "no way to a cache"},
        {"facts": replace(recorded_facts(), shortage=("out of memory", ""))},
    ):
        assert warm_start.image_of(loaded(**changes), {}) is None


REFUSALS = [
    (OSError(errno.EINVAL, "Invalid argument"), True),
    (OSError(errno.ENOENT, "No such file or directory"), True),
    (bpf_calls.VerifierError(errno.EACCES, "R1 invalid mem access 'scalar'"), True),
    (bpf_calls.VerifierError(errno.EPERM, "R0 leaks addr as return value"), True),
    (OSError(errno.EACCES, "Permission denied"), False),
    (OSError(errno.EPERM, "Operation not permitted"), False),
    (OSError(errno.EBUSY, "Device or resource busy"), False),
    (OSError(errno.ENODEV, "No such device"), False),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "/sys/bus/event_source/devices/kprobe/type"), False),
]


@pytest.mark.parametrize(("error", "final"), REFUSALS, ids=lambda value: str(value))
def test_a_refusal_is_final_where_it_is_the_kernel_s_own_word(
    monkeypatch: pytest.MonkeyPatch, error: OSError, final: bool
) -> None:
    attempts: list[Any] = []
    made = attempt(None)

    class Attempt:
        def __init__(self, *args: Any) -> None:
            attempts.append(self)

        def run(self) -> loader.Loaded:
            if len(attempts) < 3:
                # The first is always final: what came later must not be forgotten, nor the other way round.
                fails = [OSError(errno.EINVAL, "x"), error]
                made._attach_programs = throwing(fails[len(attempts) - 1])
                made._attach_signal(first_signal())
            return cast(loader.Loaded, loaded())

        def undo(self) -> None:
            pass

    monkeypatch.setattr(loader, "_Attempt", Attempt)
    monkeypatch.setattr(loader, "find_bcc", lambda: (None, Path("/")))
    monkeypatch.setattr(facts, "gather", recorded_facts)
    monkeypatch.setattr(cgroupfs, "find_memory", lambda: None)
    monkeypatch.setattr(bpf_calls, "available", lambda: True)
    assert loader.load(()).may_do_better is not final
    assert len(attempts) == 3


def test_a_signal_whose_every_way_was_refused_is_told_as_such() -> None:
    chosen = plan(recorded_facts(LOCKED))
    signal = next(signal for signal in chosen.signals if signal.name == "alloc")
    refused = loader.best_only(chosen, {"alloc": ["no"] * len(signal.candidates)})
    result = attempt(None)._attach_signal(next(one for one in refused.signals if one.name == "alloc"))
    assert (result.attachment, result.fell_back) == (None, True)


def test_a_start_in_a_boot_that_is_not_known_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_start, "_text", lambda path: None)
    with pytest.raises(ValueError, match="boot_id"):
        warm_start.key(())


def test_what_an_earlier_version_kept_is_not_used(tmp_path: Path) -> None:
    directory = tmp_path / "kmemwatch"
    key: dict[str, Any] = {"without": [], "latency": False}
    warm_start.save(directory, key, {"maps": []})
    file = directory / "start"
    file.write_bytes(file.read_bytes().replace(b"kmemwatch start 2", b"kmemwatch start 1"))
    with pytest.raises(ValueError, match="damaged"):
        warm_start.load(directory, key)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    directory = tmp_path / "kmemwatch"
    key: dict[str, Any] = {"without": [], "latency": False}
    warm_start.save(directory, key, {"maps": ["old"]})
    monkeypatch.setattr(os, "rename", failing(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        warm_start.save(directory, key, {"maps": ["new"]})
    assert [entry.name for entry in directory.iterdir()] == ["start"]
    assert warm_start.load(directory, key) == {"maps": ["old"]}


def test_two_that_write_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    directory = tmp_path / "kmemwatch"
    code = f"""
import sys
from pathlib import Path
from kmemwatch.attach import warm_start
key = {{"without": [], "latency": False}}
for number in range(200):
    warm_start.save(Path({str(directory)!r}), key, {{"maps": [sys.argv[1]] * 500}})
"""
    running = [subprocess.Popen([sys.executable, "-c", code, word]) for word in "abc"]
    key = {"without": [], "latency": False}
    seen = set()
    while any(process.poll() is None for process in running):
        try:
            kept = warm_start.load(directory, key)
        except FileNotFoundError:
            continue
        assert kept is not None
        assert len(set(kept["maps"])) == 1
        seen.add(kept["maps"][0])
    assert [process.returncode for process in running] == [0, 0, 0]
    assert [entry.name for entry in directory.iterdir()] == ["start"]
    assert len(seen) > 1


# Filters of system calls


@pytest.mark.parametrize("wanted", [privileges.filter_http_calls, privileges.filter_reader_calls])
def test_no_filter_for_want_of_something_is_no_reason_to_do_without(
    monkeypatch: pytest.MonkeyPatch, wanted: Callable[[], str | None]
) -> None:
    def fail(name: str, **options: Any) -> Any:
        raise OSError(f"{name}: cannot open shared object file: {said}")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    said = "Error 24"
    with pytest.raises(ShortageError, match="system calls cannot be filtered: out of file descriptors"):
        wanted()
    said = "No such file or directory"
    assert wanted() == "libseccomp.so.2 is not installed"


# Two processes


@shortages
def test_a_child_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("socket.socketpair", "os.memfd_create", "subprocess.Popen"):
        with monkeypatch.context() as patched:
            patched.setattr(name, failing(number))
            with pytest.raises(ShortageError, match="cannot be started"):
                handover.Child()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def channel() -> Iterator[tuple[int, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield theirs.detach(), ours
    ours.close()


def received(ours: socket.socket) -> KmemwatchError:
    child: Any = object.__new__(handover.Child)
    child._channel = ours
    child._process = SimpleNamespace(speaks=lambda channel: True)
    child.close = lambda: None
    with pytest.raises(KmemwatchError) as caught:
        handover.Child.wait(child)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [*(OSError(number, os.strerror(number)) for number in NUMBERS), MemoryError(),
     RuntimeError("can't start new thread")],
    ids=repr,
)  # fmt: skip
def test_the_child_says_what_it_is_short_of(
    monkeypatch: pytest.MonkeyPatch, channel: tuple[int, socket.socket], error: Exception
) -> None:
    def fail(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(attach, "start", fail)
    attach.main(["", str(channel[0]), '{"without": [], "latency": false}'], None)
    told = received(channel[1])
    assert isinstance(told, ShortageError)
    assert str(told).startswith("the probes cannot be attached: ")
    assert told.hint


def test_descriptors_that_do_not_fit_are_a_shortage_and_none_stays() -> None:
    ours, theirs = socket.socketpair()
    code = """
import os, resource, socket, sys
from types import SimpleNamespace
from kmemwatch.attach import handover
child = object.__new__(handover.Child)
child._channel = socket.socket(fileno=int(sys.argv[1]))
child._process = SimpleNamespace(speaks=lambda channel: True)
before = os.listdir("/proc/self/fd")
resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 5, len(before) + 5))
try:
    child._receive_descriptors({"descriptors": 20, "manifest": {}})
except handover.ShortageError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 5, len(before) + 5))
assert os.listdir("/proc/self/fd") == before
"""
    with ours, theirs:
        socket.send_fds(theirs, [b"."], [0] * 20)
        done = subprocess.run(
            [sys.executable, "-c", code, str(ours.fileno())], pass_fds=[ours.fileno()], capture_output=True,
            text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.startswith("the probes cannot be taken over: out of file descriptors")
