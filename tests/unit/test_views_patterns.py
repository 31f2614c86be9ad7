# SPDX-License-Identifier: GPL-2.0-only
"""Regular expressions: no name keeps any of them busy, whoever has written it; and what they mean."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kmemwatch.errors import KmemwatchError, UsageError
from kmemwatch.exporter.selection import SelectionOptions
from kmemwatch.feeds.recording import RecordingWriter
from kmemwatch.model import Snapshot
from kmemwatch.views import patterns
from kmemwatch.views.patterns import any_of, compiled
from kmemwatch.views.rows import frame
from kmemwatch.views.select import select
from tests.unit import fakes
from tests.unit.screens import Person, app_of, drive, refreshed, table_lines
from tests.unit.test_serve_daemon import get, serve

ROOT = Path(__file__).parents[2]
EVIL_NAME = "/" + "a" * 45 + "!"
"""What a container may call its cgroup."""
EVIL = ["(a+)+$", "(a|aa)+$", "(a|a?)+$", "([a-z]+)*=", "(.*a){12}=", "(?:a?){45}a{46}", "(a*)*b", "^(/?(a+|a+)+)+$"]
SECONDS = 5.0
"""By far more than any needs; `re` needs years."""


def busy(seconds: int = 0) -> Snapshot:
    known = fakes.sample(seconds)
    cgroups = tuple(replace(c, path=EVIL_NAME) if n == 1 else c for n, c in enumerate(known.cgroups))
    return replace(known, cgroups=cgroups)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "busy.kmw"
    with RecordingWriter(str(path)) as writer:
        writer.begin(busy())
        for second in range(3):
            writer.write_snapshot(busy(second))
    return path


# Nobody waits.


@pytest.mark.parametrize("expression", EVIL)
def test_no_name_keeps_an_expression_busy(expression: str) -> None:
    one = compiled("--filter", expression)
    began = time.thread_time()
    for name in (EVIL_NAME, "a" * 4095 + "!", "/a" * 2047 + "\udcff"):
        one.search(name)
        one.fullmatch(name)
    assert time.thread_time() - began < 1


@pytest.mark.parametrize("expression", EVIL)
def test_rows(expression: str) -> None:
    began = time.thread_time()
    assert select("cgroups", regex=expression).rows(frame(busy(), busy(3))) is not None
    assert time.thread_time() - began < SECONDS


@pytest.mark.parametrize("expression", EVIL)
@pytest.mark.parametrize("option", ["cgroup_include", "cgroup_exclude", "cache_include", "cache_exclude"])
def test_selections(option: str, expression: str) -> None:
    chosen = SelectionOptions(**{option: ["nothing", expression]}).selection()  # type: ignore[arg-type]
    began = time.thread_time()
    chosen.has_cgroup(EVIL_NAME)
    chosen.has_cache(EVIL_NAME)
    assert time.thread_time() - began < 1


def test_the_command_line(recording: Path) -> None:
    command = [sys.executable, "-m", "kmemwatch", "top", "--once", "--replay", str(recording), "--filter"]
    done = subprocess.run([*command, EVIL[0]], capture_output=True, text=True, check=False, timeout=30, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "aaaa!" not in done.stdout
    done = subprocess.run([*command, "a(?!b)"], capture_output=True, text=True, check=False, timeout=30, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("kmemwatch: --filter: 'a(?!b)' cannot be used: RE2 has no look-ahead at character 2")


@pytest.mark.parametrize("expression", EVIL[:3])
def test_typing_in_top(expression: str) -> None:
    app = app_of(refreshed(busy))

    async def test(person: Person) -> None:
        began = time.monotonic()
        await person.press("slash", *expression, "enter")
        assert time.monotonic() - began < 20
        assert app.selection.pattern is not None
        assert app.selection.pattern.pattern == expression
        assert len(table_lines(app)) > 0

    drive(app, test)


@pytest.mark.parametrize("option", ["--cgroup.include", "--cgroup.exclude", "--cache.include", "--cache.exclude"])
def test_a_scrape_and_a_health_check(recording: Path, option: str) -> None:
    with serve("--replay", str(recording), option, "(/?a+)+", option, EVIL[0], option, ".*(a|aa)+$") as daemon:
        url = daemon.line().rpartition(" ")[2]
        began = time.monotonic()
        for _ in range(3):
            text = get(url, "/metrics").decode()
            assert get(url, "/-/healthy") == b"kmemwatch is healthy.\n"
        assert time.monotonic() - began < SECONDS
        assert "kmemwatch_excluded_c" in text


def sources() -> list[tuple[str, re.Pattern[str] | re.Pattern[bytes]]]:
    """Every expression of our own, found in the source."""
    found = []
    for path in sorted((ROOT / "kmemwatch").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and isinstance(node.func.value, ast.Name) and node.func.value.id == "re":  # type: ignore[attr-defined]
                argument = node.args[0] if node.args else None  # type: ignore[attr-defined]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str | bytes):
                    found.append((f"{path.stem}:{node.lineno}", re.compile(argument.value)))  # type: ignore[attr-defined]
    return found


def composed() -> list[tuple[str, re.Pattern[str] | re.Pattern[bytes]]]:
    """Those that are put together of parts."""
    from kmemwatch.compare.prometheus import _SELECTOR
    from kmemwatch.exporter.kubernetes import _POD
    from kmemwatch.feeds.recording.format import _VERSION
    from kmemwatch.web.configformat import _DURATION

    return [("_SELECTOR", _SELECTOR), ("_POD", _POD), ("_VERSION", _VERSION), ("_DURATION", _DURATION)]


UID = "0123abcd-0123-0123-0123-0123456789ab"
SAMPLES = [
    'job="kmemwatch", instance=~"a\\\\.b" , x!=\'y\' ,',
    f"kubelet-kubepods-burstable-pod{UID}.slice:cri-containerd:{'0f' * 32}",
    f"cri-containerd-{'0f' * 32}.scope",
    '{"format":"kmemwatch-recording","version":1,"seq":1,"type":"snapshot",',
    ',"crc32":"01234567"}\n',
    "2026-11-22T20:08:28.123456789Z",
    "$2y$10$" + "a" * 53,
    "1h30m1.5s",
    "[::1]:9090/",
    "sockets=12",
    '{ GFP_X, "__GFP_ACCOUNT" 0x10u',
    "00000000-0009fc00 : Kernel code",
    "CapEff:\t000001ffffffffff",
    "12 % 5 ms",
    "\\x0a\\u0a0a\\n\\040",
    "",
]
FILLS = [*" 1a0-\"'\\{[,:.=", "1.", "a-", "\\\\", ', "', 'a="b",', "kubepods-"]


@pytest.mark.parametrize(("place", "pattern"), [*sources(), *composed()], ids=lambda value: str(value)[:30])
def test_our_own_expressions_are_linear(place: str, pattern: re.Pattern[str] | re.Pattern[bytes]) -> None:
    size = 20_000
    slowest, worst = 0.0, ""
    for sample in SAMPLES:
        for fill in FILLS:
            for at in {0, len(sample) // 2, len(sample)}:
                text = f"{sample[:at]}{fill * (size // len(fill))}{sample[at:]}\0"
                given_text: str | bytes = text.encode() if isinstance(pattern.pattern, bytes) else text
                began = time.thread_time()
                pattern.fullmatch(given_text)  # type: ignore[arg-type]
                pattern.match(given_text)  # type: ignore[arg-type]
                took = time.thread_time() - began
                if took > slowest:
                    slowest, worst = took, f"{sample[:at]!r} {fill!r}"
    assert slowest < 0.5, f"{place}: {slowest:.1f} s of {worst}: a square of {size} takes ten times as long"


# What they mean.


characters = st.sampled_from(["a", "b", "/", "-", "7", "_", "é", "日", "\udc80", "\udcff"])
atoms = st.one_of(
    characters.map(re.escape),
    st.sampled_from([".", "[ab]", "[^a/]", "[a-z]", r"\d", r"\w", r"\W", r"\D", "^", "$", r"\b", r"[\w/]", "[é-日]"]),
)
expressions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{0,2}", "{2}", "{1,}", "*?", "+?"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
        inner.map(lambda one: f"({one})"),
        inner.map(lambda one: f"(?P<name>{one})"),
    ),
    max_leaves=6,
).filter(lambda text: text.count("?P<name>") <= 1)
texts = st.lists(characters, max_size=7).map("".join)


@given(expressions, st.lists(texts, min_size=1, max_size=5))
@settings(max_examples=500, deadline=None)
def test_the_same_as_python_where_both_know_it(expression: str, names: list[str]) -> None:
    ours, theirs = compiled("--filter", expression), re.compile(expression, re.ASCII)
    for name in names:
        assert ours.search(name) == (theirs.search(name) is not None), name
        assert ours.fullmatch(name) == (theirs.fullmatch(name) is not None), name


@given(st.one_of(st.text(max_size=40), st.text("()[]{}?*+|\\^$.,<>=!:PQEab019", max_size=20)))
@settings(max_examples=500, deadline=None)
def test_any_text_is_an_expression_or_one_line(text: str) -> None:
    told = None
    try:
        compiled("--filter", text).search(text)
    except UsageError as error:
        told = str(error)
    assert told is None or (told.isprintable() and told.startswith("--filter: '"))


def test_case_flags_and_bytes_that_are_no_text() -> None:
    assert compiled("x", "(?i)KUBE").search("/kubepods")
    assert compiled("x", "(?i:É)").search("/é")
    assert not compiled("x", "KUBE").search("/kubepods")
    odd = "/\udcff\udc80"
    assert compiled("x", "^/..$").search(odd)
    assert compiled("x", "/\udcff.").fullmatch(odd)
    assert not compiled("x", "\udcfe").search(odd)
    assert compiled("x", "[^/]{2}").search(odd)


def test_any_of_several() -> None:
    assert any_of("x", []) is None
    one = any_of("x", ["a|b", "(?i)c", ""])
    assert one is not None
    assert [name for name in ("a", "b", "C", "", "ab", "A") if one.fullmatch(name)] == ["a", "b", "C", ""]
    with pytest.raises(UsageError, match=r"--cgroup\.include: 'b\)\|\(c' is not a regular expression"):
        any_of("--cgroup.include", ["a", "b)|(c"])
    quoted = any_of("x", [r"\Qa.(", "\\Q\\", r"\Qb\E+", "c"])
    assert quoted is not None
    assert [name for name in ("a.(", "\\", "bb", "c", "ab(", "") if quoted.fullmatch(name)] == ["a.(", "\\", "bb", "c"]
    many = any_of("x", [f"/name{number}" for number in range(2000)])
    assert many is not None
    assert many.fullmatch("/name1999")


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("a(?=b)", "'a(?=b)' cannot be used: RE2 has no look-ahead at character 2: '(?=b)'"),
        (r"\(?=(?!b)", r"RE2 has no look-ahead at character 5: '(?!b)'"),
        ("[(?=](?=a)", "no look-ahead at character 6: '(?=a)'"),
        ("[]](?<=b)", "no look-behind at character 4: '(?<=b)'"),
        ("x(?<!b)", "no look-behind at character 2: '(?<!b)'"),
        (r"(a)\1", r"no references to groups at character 4: '\1'"),
        ("(?P<n>a)(?P=n)", "no references to groups at character 9: '(?P=n)'"),
        (r"(a)\g<1>", "no references to groups at character 4"),
        ("(?>a)b", "no atomic groups at character 1"),
        ("ba++", "no possessive repetitions at character 3: '++'"),
        ("a{2}+", "no possessive repetitions at character 2"),
        ("(a)?(?(1)b|c)", "no conditions at character 5"),
        ("a(?#why)", "no comments at character 2"),
        ("(?x) a", "no such groups or flags at character 1"),
        (r"a\Z", r"is not a regular expression: invalid escape sequence at character 2: '\Z'"),
        ("a{,3}", "is not a regular expression: invalid repetition size at character 2: '{,3}'"),
        ("a{99999999999}", "invalid repetition size at character 2"),
        ("a{1001}", "invalid repetition size at character 2"),
        ("(", "'(' is not a regular expression: missing )"),
        ("é[b", "missing ] at character 2: '[b'"),
        ("\x1b[31m[", "'\\x1b[31m[' is not"),
        ("x" * 20_000, "a regular expression of more than 10000 characters"),
        (r"\pN{1000}", "too large"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_place(expression: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        compiled("--filter", expression)
    assert str(caught.value).startswith("--filter: ")
    assert told in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert len(str(caught.value)) < 400


def test_what_only_looks_like_it() -> None:
    both = {r"\(?=": "(=", "[(?=]": "?", r"a\{,3\}": "a{,3}", r"\Qa{,3}\E": "a{,3}", "[{,3}]": ","}
    for expression, text in both.items():
        assert compiled("x", expression).fullmatch(text), expression


def test_it_is_loaded_with_the_first_expression_only() -> None:
    script = (
        "import sys; import kmemwatch.views.select, kmemwatch.serve.http_service; from kmemwatch.views import patterns"
    )
    script += "; print('re2' in sys.modules); patterns.compiled('x', 'a'); print('re2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "True"]


def test_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    patterns._engine.cache_clear()
    monkeypatch.setitem(sys.modules, "re2", None)
    with pytest.raises(KmemwatchError, match="regular expressions need RE2") as caught:
        compiled("--filter", "a")
    assert "google-re2" in str(caught.value.hint)
    app = app_of(refreshed(fakes.sample))

    async def test(person: Person) -> None:
        await person.press("slash", "a", "enter")
        assert app.selection.pattern is None

    drive(app, test)
    patterns._engine.cache_clear()


@given(st.lists(expressions, min_size=1, max_size=4), st.lists(texts, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_several_are_what_each_is(several: list[str], names: list[str]) -> None:
    one = any_of("x", several)
    assert one is not None
    for name in names:
        assert one.fullmatch(name) == any(compiled("x", expression).fullmatch(name) for expression in several)
