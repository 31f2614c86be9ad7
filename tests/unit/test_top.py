# SPDX-License-Identifier: GPL-2.0-only
"""Keys of `top`: what each does, and that nothing a feed does leaves the screen or the terminal broken."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from msgspec import structs
from textual.widgets import Input

from kmemwatch.errors import KmemwatchError, UnsupportedError, UsageError
from kmemwatch.model import DYING, RELEASED
from kmemwatch.top.details import TITLE_CELLS, DetailsScreen
from kmemwatch.top.help import HelpScreen
from kmemwatch.top.poller import Ended, Failed, Poller, Refreshed, Update
from kmemwatch.top.topapp import TopApp
from kmemwatch.views.rows import Frame
from kmemwatch.views.select import check_scope, select
from kmemwatch.views.tables import VIEWS
from tests.unit import fakes
from tests.unit.fakes import IDS, FakeFeed
from tests.unit.screens import Person, app_of, drive, key_event, lines, refreshed, table_lines


def first_names(app: TopApp, count: int = 3) -> list[str]:
    return [line.split()[0] for line in table_lines(app)[1 : count + 1] if line.strip()]


@pytest.fixture
def app() -> TopApp:
    return app_of(refreshed(fakes.sample))


@pytest.mark.parametrize(
    ("key", "title", "name"),
    [("g", "CGROUP", "/"), ("c", "CACHE", "radix_tree_node"), ("z", "CGROUP", "…od-a2/cri-ctr-dead02")],
)
def test_letters_open_views(app: TopApp, key: str, title: str, name: str) -> None:
    async def test(person: Person) -> None:
        await person.press(key)
        header, first, *_ = table_lines(app)
        assert header.startswith(title)
        assert first.split()[0] == name

    drive(app, test)


def test_tab_goes_through_all_views_and_back(app: TopApp) -> None:
    async def test(person: Person) -> None:
        seen = []
        for _ in range(5):
            await person.press("tab")
            seen.append(app.selection.view.name)
        assert seen == ["caches", "zombies", "ids", "recharges", "cgroups"]
        await person.press("shift+tab")
        assert app.selection.view.name == "recharges"

    drive(app, test)


def test_sorting_keys(app: TopApp) -> None:
    async def test(person: Person) -> None:
        assert first_names(app) == ["/", "/kubepods.slice", "…/pod3f9c/cri-ctr-0b71"]
        await person.press("R")
        assert first_names(app, 1) == ["…pod-a2/cri-ctr-dead02"]
        await person.press("s")
        assert app.selection.sort.key == "slab_bytes"
        assert not app.selection.reverse
        await person.press("<", "S")
        assert app.selection.sort.key == "state"
        await person.press(">")
        assert app.selection.sort.key == "kernel_bytes"

    drive(app, test)


def test_o_switches_between_own_figures_and_those_with_children(app: TopApp) -> None:
    async def test(person: Person) -> None:
        assert "OWN KERNEL" not in table_lines(app)[0]
        await person.press("slash", *"slice", "enter", "o")
        assert "OWN KERNEL" in table_lines(app)[0]
        assert " KERNEL " not in table_lines(app)[0].replace("OWN KERNEL", "")
        assert app.selection.sort.key == "own_kernel_bytes"
        assert app.selection.pattern is not None, "the filter stays"
        await person.press("s", "s", "s", "o")
        assert app.selection.view.name == "cgroups"
        assert "OWN KERNEL" not in table_lines(app)[0]
        await person.press("z", "o")
        assert app.selection.view.name == "zombies"
        await person.press("g")
        assert app.selection.view.name == "cgroups"

    drive(app, test)


def test_a_click_on_a_header_sorts_and_turns(app: TopApp) -> None:
    async def test(person: Person) -> None:
        await person.click("#rows", offset=(2, 0))
        assert (app.selection.sort.key, app.selection.reverse) == ("cgroup", False)
        await person.click("#rows", offset=(2, 0))
        assert (app.selection.sort.key, app.selection.reverse) == ("cgroup", True)

    drive(app, test)


def test_a_click_puts_the_cursor_and_a_second_one_opens(app: TopApp) -> None:
    async def test(person: Person) -> None:
        await person.click("#rows", offset=(2, 3))
        await person.click("#rows", offset=(2, 3))
        assert isinstance(app.screen, DetailsScreen)
        assert "cri-ctr-0b71" in lines(app)[0]

    drive(app, test)


def test_filter_shows_while_typing_and_escape_brings_back(app: TopApp) -> None:
    async def test(person: Person) -> None:
        await person.press("slash", *"dead")
        assert len(first_names(app, 20)) == 2
        await person.press("escape")
        assert len(first_names(app, 20)) == 14
        await person.press("slash", *"dead", "enter")
        assert len(first_names(app, 20)) == 2
        assert "/dead/" in lines(app)[3]
        await person.press("c")  # letters are keys again, and each view has its own filter
        assert len(first_names(app, 20)) == 12
        await person.press("g", "escape")
        assert len(first_names(app, 20)) == 14

    drive(app, test)


def test_views_of_a_patched_kernel_sort_and_filter() -> None:
    app = app_of(refreshed(fakes.patched))

    async def test(person: Person) -> None:
        await person.press("i")
        assert first_names(app) == ["…slice/docker.service", "…pod3f9c/cri-ctr-0b71", "-"]
        await person.press("R")
        assert first_names(app) == ["-", "…pod3f9c/cri-ctr-0b71", "…slice/docker.service"]
        await person.press("slash", *"_id 3", "enter")
        assert first_names(app, 9) == ["…pod3f9c/cri-ctr-0b71"]
        await person.press("r")
        assert first_names(app) == ["dentry(3)", "filp(3)", "dentry(0)"]
        await person.press("s")
        assert app.selection.sort.key == "recharges_per_s"
        await person.press("slash", *"nobody", "enter")
        assert first_names(app, 9) == ["filp(3)"]
        await person.press("c", "slash", *"^dentry")
        assert len(first_names(app, 9)) == 1  # its three copies are part of it

    drive(app, test, size=(80, 24))


@pytest.mark.parametrize("view", ["ids", "recharges"])
def test_every_column_sorts(view: str) -> None:
    for key in [field.key for field in select(view).view.fields]:
        app = app_of(refreshed(fakes.patched), view=view, sort=key)
        drive(app, lambda person: person.pause())
        assert app.failure is None


def test_what_a_cgroup_consists_of_changes_when_it_dies() -> None:
    app = app_of(refreshed(fakes.patched), regex="dead01|0b71")
    alive, dead = 2101, 4001
    held = {c.id: c for c in fakes.patched().cgroups}[dead].child_slabs

    def later(number: int, **changes: object) -> Refreshed:
        known = fakes.patched(number)
        cgroups = tuple(structs.replace(c, **changes) if c.id == alive else c for c in known.cgroups)
        return Refreshed(Frame(structs.replace(known, cgroups=cgroups)), "live", None)

    async def test(person: Person) -> None:
        await person.press("enter")
        assert any(line.strip().startswith("its caches: ") for line in lines(app))
        app.post_message(app.Polled(later(6, state=DYING, child_slabs=None)))
        await person.pause()
        assert any(line.strip().startswith("its caches: ") for line in lines(app))
        app.post_message(app.Polled(later(9, state=DYING, child_slabs=held)))
        await person.pause()
        assert any(line.strip() == "child caches that hold its slabs: 2" for line in lines(app))
        assert [line.split()[0] for line in table_lines(app)[1:3]] == ["dentry(3)", "inode_cache(3)"]
        app.post_message(app.Polled(later(12, state=DYING, child_slabs=())))
        await person.pause()
        assert any(line.strip() == "child caches that hold its slabs: 0" for line in lines(app))
        assert any("no child cache holds a slab of it" in line for line in lines(app))

    drive(app, test)


def test_letters_and_tab_belong_to_the_filter_while_it_is_typed(app: TopApp) -> None:
    async def test(person: Person) -> None:
        await person.press("slash", "q", "z", "space", "tab")
        assert app.selection.view.name == "cgroups"
        assert app.query_one(Input).value == "qz "

    drive(app, test)


def test_half_a_pattern_keeps_the_last_good_one(app: TopApp) -> None:
    async def test(person: Person) -> None:
        await person.press("slash", *"dead[")
        assert len(first_names(app, 20)) == 2
        assert "not a pattern yet" in lines(app)[3]
        await person.press(*"0]1")
        assert len(first_names(app, 20)) == 1
        assert "not a pattern yet" not in lines(app)[3]

    drive(app, test)


def test_pause_keeps_the_screen_and_shows_the_latest_afterwards(app: TopApp) -> None:
    async def test(person: Person) -> None:
        await person.press("c", "space")
        before = table_lines(app)
        app.post_message(app.Polled(refreshed(fakes.lossy, 60)))
        await person.pause()
        assert table_lines(app) == before
        assert "PAUSED" in lines(app)[1]
        assert "lost 0" in lines(app)[0]
        await person.press("space")
        assert "lost 1205" in lines(app)[0]
        assert "PAUSED" not in lines(app)[1]

    drive(app, test)


def test_delay_keys(app: TopApp) -> None:
    async def test(person: Person) -> None:
        assert "every 3s" in lines(app)[0]
        await person.press("plus")
        assert "every 5s" in lines(app)[0]
        await person.press("minus", "minus", "minus", "minus", "minus", "minus", "minus")
        assert "every 0.5s" in lines(app)[0]

    drive(app, test)


def test_the_cursor_stays_on_its_row_while_others_move(app: TopApp) -> None:
    async def test(person: Person) -> None:
        await person.press("down", "down", "enter")
        assert "cri-ctr-0b71" in lines(app)[0]
        await person.press("escape")
        snapshot = fakes.sample(6)
        cgroups = tuple(structs.replace(c, kernel_bytes=0) if c.id == 2101 else c for c in snapshot.cgroups)
        update = refreshed(fakes.sample, 6)
        update = replace(update, frame=replace(update.frame, snapshot=structs.replace(snapshot, cgroups=cgroups)))
        app.post_message(app.Polled(update))
        await person.pause()
        await person.press("enter")
        assert "cri-ctr-0b71" in lines(app)[0]

    drive(app, test)


def test_the_cursor_stays_at_the_top_when_it_was_never_moved(app: TopApp) -> None:
    async def test(person: Person) -> None:
        await person.press("R", "enter")
        assert "cri-ctr-dead02" in lines(app)[0]

    drive(app, test)


def test_moving_beyond_the_ends_is_harmless(app: TopApp) -> None:
    async def test(person: Person) -> None:
        await person.press("up", "pageup", "end", "down", "pagedown", "pagedown", "home", "end")
        await person.press("enter")
        assert "apt-daily" in lines(app)[0]

    drive(app, test)


def test_details_of_a_cgroup_have_its_caches_charges_and_pins(app: TopApp) -> None:
    async def test(person: Person) -> None:
        await person.press("z", "down", "enter")
        text = "\n".join(lines(app))
        for expected in (
            "PINNED BY       shmem 10.0M, file 2.0M, slab 80.0K",
            "CHARGED/s",
            "MEMORY          12.0M (12,582,912)",
        ):
            assert expected in text
        await person.press("escape", "g", "enter")
        text = "\n".join(lines(app))
        assert "its caches: 4" in text
        assert "dentry" in text

    drive(app, test)


def test_details_of_a_cache_have_its_cgroups(app: TopApp) -> None:
    async def test(person: Person) -> None:
        await person.press("c", "enter")
        text = "\n".join(lines(app))
        assert "its cgroups: 4" in text
        assert IDS[0xFFFF888001001200] in text
        assert "0xffff" not in text

    drive(app, test)


def test_details_stay_up_to_date_and_survive_the_end_of_their_row(app: TopApp) -> None:
    async def test(person: Person) -> None:
        await person.press("z", "enter")
        later = fakes.sample(6)
        gone = tuple(structs.replace(c, state=RELEASED) if c.id == 4002 else c for c in later.cgroups)
        update = refreshed(fakes.sample, 6)
        update = replace(update, frame=replace(update.frame, snapshot=structs.replace(later, cgroups=gone)))
        app.post_message(app.Polled(update))
        await person.pause()
        assert "gone: these are its last figures" in lines(app)[0]
        assert "310.0M" in "\n".join(lines(app))

    drive(app, test)


@pytest.mark.parametrize("key", ["question_mark", "h"])
def test_help_opens_and_closes(app: TopApp, key: str) -> None:
    async def test(person: Person) -> None:
        await person.press(key)
        assert isinstance(app.screen, HelpScreen)
        await person.press("c", "space")  # keys of the table do nothing here
        assert app.selection.view.name == "cgroups"
        await person.press("q")
        assert len(app.screen_stack) == 1

    drive(app, test)


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_quit(app: TopApp, key: str) -> None:
    async def test(person: Person) -> None:
        await person.press(key)
        assert not app.is_running or app._exit

    drive(app, test)
    assert app.failure is None


@pytest.mark.parametrize("size", [(80, 24), (140, 40), (40, 10), (20, 5), (1, 1), (200, 3)])
def test_any_size_works_and_sizes_change(size: tuple[int, int]) -> None:
    app = app_of(refreshed(fakes.sample, notice="the recording was cut off at record 7"))

    async def test(person: Person) -> None:
        for key in ("c", "z", "enter", "escape", "question_mark", "escape", "g", "end", "home"):
            await person.press(key)
        for other in ((13, 60), (80, 24), size):
            await person.resize(*other)
        assert len(lines(app)) == size[1]

    drive(app, test, size)


@pytest.mark.parametrize("make", [fakes.unknown, fakes.empty, fakes.odd, fakes.patched, fakes.lossy])
@pytest.mark.parametrize("view", ["cgroups", "caches", "zombies", "ids", "recharges"])
def test_every_view_draws_any_snapshot(make: object, view: str) -> None:
    assert callable(make)
    app = app_of(refreshed(make), view=view)

    async def test(person: Person) -> None:
        await person.press("enter")
        await person.press("escape")
        assert all(line.isprintable() for line in lines(app))

    drive(app, test)


def test_before_the_feed_is_ready_the_frame_is_there() -> None:
    app = app_of(opening="attaching to the kernel…")

    async def test(person: Person) -> None:
        await person.press("z", "s", "R", "enter", "slash", "x", "enter", "space", "down")
        text = "\n".join(lines(app))
        assert "attaching to the kernel…" in text
        assert "zombies" in text

    drive(app, test)


def test_the_end_of_the_feed_is_said_and_the_last_state_stays() -> None:
    app = app_of(refreshed(fakes.sample), Ended("the recording was cut off at record 7"))

    async def test(person: Person) -> None:
        text = "\n".join(lines(app))
        assert "ENDED" in text
        assert "cut off at record 7" in text
        assert "/kubepods.slice" in text

    drive(app, test)


def test_a_failing_feed_ends_the_screen_with_its_error() -> None:
    app = app_of(Failed(UnsupportedError("no BTF", "use another kernel")))

    async def test(person: Person) -> None:
        await person.pause()

    drive(app, test)
    assert isinstance(app.failure, UnsupportedError)
    assert app.return_code == 1


def test_iterations_end_it() -> None:
    poller = Poller(lambda: FakeFeed([]), 3.0)
    app = TopApp(poller, select("cgroups"), refreshes=2)

    async def test(person: Person) -> None:
        app.post_message(app.Polled(Refreshed(replace(refreshed(fakes.sample).frame), "live", None)))
        await person.pause()
        assert not app._exit
        app.post_message(app.Polled(refreshed(fakes.sample, 6)))
        await person.pause()
        assert app._exit

    drive(app, test)


# The poller


@pytest.fixture
def updates() -> list[Update]:
    return []


def poll(feed: FakeFeed, updates: list[Update], delay_s: float = 0.01, **extra: object) -> Poller:
    poller = Poller(lambda: feed, delay_s, **extra)  # type: ignore[arg-type]
    poller.start()
    poller.listen(updates.append)
    poller._thread.join(5)
    return poller


def test_the_poller_reads_to_the_end_and_closes(updates: list[Update]) -> None:
    feed = FakeFeed([fakes.sample(), fakes.sample(3)], ends=True, notice="cut off")
    poll(feed, updates)
    first, second, end = updates
    assert isinstance(first, Refreshed)
    assert first.frame.rates.interval_s is None
    assert isinstance(second, Refreshed)
    assert second.frame.rates.interval_s == 3.0
    assert end == Ended("cut off")
    assert feed.closed == 1
    assert feed.delays[0] == 0


def test_the_first_rates_come_soon_however_long_the_delay(updates: list[Update]) -> None:
    feed = FakeFeed([fakes.sample(), fakes.sample(3), fakes.sample(6)], ends=True)
    poll(feed, updates, 60.0)
    assert feed.delays == [0, 1.0, 60.0, 60.0]


def test_a_feed_that_breaks_is_closed_and_told(updates: list[Update]) -> None:
    broken = KmemwatchError("map pairs: no such file descriptor")
    feed = FakeFeed([fakes.sample(), broken])
    poll(feed, updates)
    assert isinstance(updates[0], Refreshed)
    assert updates[1] == Failed(broken)
    assert feed.closed == 1


def test_a_feed_that_cannot_be_opened_is_told() -> None:
    def refuse() -> FakeFeed:
        raise UnsupportedError("not root")

    poller = Poller(refuse, 1.0)
    poller.start()
    poller._thread.join(5)
    assert isinstance(poller.failure, UnsupportedError)
    poller.stop()


def test_an_unknown_scope_is_refused(updates: list[Update]) -> None:
    feed = FakeFeed([fakes.sample()])
    poll(feed, updates, scope="/nope", check=lambda first: check_scope(first, "/nope"))
    (failed,) = updates
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, UsageError)


def test_stop_wakes_a_waiting_feed_and_is_harmless_twice() -> None:
    feed = FakeFeed([fakes.sample()])
    poller = Poller(lambda: feed, 3600.0)
    poller.start()
    while not feed.delays[1:]:
        poller._thread.join(0.01)
    poller.stop()
    poller.stop()
    assert not poller._thread.is_alive()
    assert feed.closed >= 1


def test_a_real_poller_feeds_the_screen() -> None:
    feed = FakeFeed([fakes.sample(), fakes.sample(3)])
    poller = Poller(lambda: feed, 0.05)
    app = TopApp(poller, select("cgroups"))

    async def test(person: Person) -> None:
        poller.start()
        for _ in range(100):
            if "/kubepods.slice" in "\n".join(lines(app)):
                break
            await asyncio.sleep(0.02)
        assert "/kubepods.slice" in "\n".join(lines(app))

    drive(app, test)
    poller.stop()
    assert feed.closed >= 1


def words() -> Iterator[str]:
    """Keys in an order nobody would type; see below."""
    yield from ["z", "enter", "down", "escape", "slash", "(", "escape", "c", "end", "enter", "R", "q", "tab", "s", "S"]
    yield from ["space", "plus", "h", "escape", "i", "enter", "r", "enter", "g", "pagedown", "slash", "enter", "minus"]


@pytest.mark.parametrize("make", [fakes.sample, fakes.empty, fakes.patched])
def test_a_cat_on_the_keyboard(make: object) -> None:
    assert callable(make)
    app = app_of(refreshed(make))

    async def test(person: Person) -> None:
        for number, key in enumerate(words()):
            await person.press(key)
            app.post_message(app.Polled(refreshed(make, 3 * number + 3)))
        await person.pause()

    drive(app, test)
    assert app.failure is None


def test_refreshes_at_any_moment_of_opening_closing_and_ending() -> None:
    app = app_of(refreshed(fakes.sample))

    async def test(person: Person) -> None:
        for number, key in enumerate(["enter", "escape", "h", "escape", "z", "enter", "escape"]):
            app.post_message(key_event(key))
            for step in range(4):  # in between, not after: nobody waits for the screen
                app.post_message(app.Polled(refreshed(fakes.sample, 6 + 12 * number + 3 * step)))
                await asyncio.sleep(0)
        await person.press("q")
        app.post_message(app.Polled(refreshed(fakes.sample, 900)))

    drive(app, test)
    assert app.failure is None


def test_details_cut_no_title() -> None:
    """OWN UNCHARGED/s lost its end, and looked like the total."""
    assert {field.title for view in VIEWS for field in view.fields if len(field.title) > TITLE_CELLS} == set()
