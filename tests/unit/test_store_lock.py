"""One writer at a time; a killed writer's lock does not last."""

import json
import multiprocessing
import os
import signal
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from polysem.errors import StoreError
from polysem.store import lock
from polysem.store.lock import WHOLE, Holder, locked


def hold(folder: Path, name: str, ready: object) -> None:
    with locked(folder, name):
        ready.set()  # pyright: ignore[reportAttributeAccessIssue]  (an Event of multiprocessing)
        signal.pause()


@pytest.fixture
def holder(tmp_path: Path):
    """Starts a process that holds a lock; gives it back once it does."""
    context, started = multiprocessing.get_context("fork"), []

    def start(name: str = WHOLE):
        ready = context.Event()
        process = context.Process(target=hold, args=(tmp_path, name, ready))
        process.start()
        started.append(process)
        assert ready.wait(20)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def leave(folder: Path, whose: Holder, name: str = WHOLE) -> Path:
    (folder / name).write_text(json.dumps(asdict(whose)))
    return folder / name


def test_a_living_holder_excludes_others_and_is_named(tmp_path: Path, holder):
    process = holder()
    with pytest.raises(StoreError, match=f"being written by process {process.pid}"), locked(tmp_path):
        pass


def test_a_killed_holder_excludes_nobody(tmp_path: Path, holder):
    process = holder()
    process.kill()
    process.join()
    assert (tmp_path / WHOLE).exists()
    with locked(tmp_path):
        assert json.loads((tmp_path / WHOLE).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_pid_that_was_given_to_a_later_process_is_not_the_holder(tmp_path: Path):
    leave(tmp_path, replace(Holder.here(), started="1"))
    with locked(tmp_path):
        pass


def test_after_a_reboot_no_holder_lives(tmp_path: Path):
    leave(tmp_path, replace(Holder.here(), boot="another"))
    with locked(tmp_path):
        pass


def test_a_holder_on_another_host_is_respected(tmp_path: Path):
    path = leave(tmp_path, replace(Holder.here(), host="elsewhere", boot="another"))
    with pytest.raises(StoreError, match="elsewhere") as caught, locked(tmp_path):
        pass
    assert str(path) in str(caught.value.hint)
    assert path.exists()


@pytest.mark.parametrize("text", ["", "[" * 5000, "3", '{"pid": 1}', "PID", "HUGE"])
def test_a_lock_that_says_nothing_is_taken_over(tmp_path: Path, text: str):
    odd = {"PID": -1, "HUGE": 10**30}
    written = json.dumps(asdict(replace(Holder.here(), pid=odd[text]))) if text in odd else text
    (tmp_path / WHOLE).write_text(written)
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["folder", "full folder", "pipe", "link to nothing"])
def test_what_is_no_lock_is_named_with_what_to_do(tmp_path: Path, kind: str):
    path = tmp_path / WHOLE
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "link to nothing":
            path.symlink_to("nowhere")
        case _:
            path.mkdir()
            if kind == "full folder":
                (path / "x").touch()
    with pytest.raises(StoreError, match="is no lock file") as caught, locked(tmp_path):
        pass
    subprocess.run(str(caught.value.hint), shell=True, check=True)
    with locked(tmp_path):
        pass
    assert not path.exists()


def test_shards_exclude_the_whole_but_not_each_other(tmp_path: Path, holder):
    holder(f"{WHOLE}-trials-1")
    with locked(tmp_path, f"{WHOLE}-trials-2"):
        pass
    with pytest.raises(StoreError, match="being written"), locked(tmp_path, f"{WHOLE}-trials-1"):
        pass
    with pytest.raises(StoreError, match="being written"), locked(tmp_path):
        pass
    assert not (tmp_path / WHOLE).exists()


def test_the_whole_excludes_shards(tmp_path: Path, holder):
    holder()
    with pytest.raises(StoreError, match="being written"), locked(tmp_path, f"{WHOLE}-trials-1"):
        pass
    assert not (tmp_path / f"{WHOLE}-trials-1").exists()


def test_a_killed_shard_does_not_stop_the_whole(tmp_path: Path, holder):
    process = holder(f"{WHOLE}-trials-1")
    process.kill()
    process.join()
    with locked(tmp_path):
        pass


def test_the_lock_goes_when_the_block_fails(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_lock_taken_over_by_somebody_else_is_put_back(tmp_path: Path):
    """Between the reading of a dead holder's lock and its removal another process may have taken it over."""
    path = leave(tmp_path, Holder.here())
    dead = replace(Holder.here(), boot="another")
    lock._take_away(path, dead, tmp_path / "aside")
    assert json.loads(path.read_text()) == asdict(Holder.here())
    assert [p.name for p in tmp_path.iterdir()] == [WHOLE]


def crowd(folder: Path, inside: object, most: object) -> None:
    for _ in range(30):
        try:
            with locked(folder):
                with inside.get_lock():  # pyright: ignore[reportAttributeAccessIssue]  (a Value of multiprocessing)
                    inside.value += 1  # pyright: ignore[reportAttributeAccessIssue]
                    most.value = max(most.value, inside.value)  # pyright: ignore[reportAttributeAccessIssue]
                with inside.get_lock():  # pyright: ignore[reportAttributeAccessIssue]
                    inside.value -= 1  # pyright: ignore[reportAttributeAccessIssue]
        except StoreError:
            pass


def test_a_crowd_is_never_two_inside(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    inside, most = context.Value("i", 0), context.Value("i", 0)
    people = [context.Process(target=crowd, args=(tmp_path, inside, most)) for _ in range(4)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert all(person.exitcode == 0 for person in people)
    assert most.value == 1
    assert list(tmp_path.iterdir()) == []
