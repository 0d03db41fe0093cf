"""Node memory: copies that are whole or do not count, and which step counts."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable

import numpy as np
import pytest

from ringtmp.nn.model import build_model
from ringtmp.nn.optimizers import Optimizer
from ringtmp.nn.stage import Stage
from ringtmp.resilience.node_memory import FoundReplica, NodeMemory, ReplicaLayout, StageReplica, newest, node_name
from ringtmp.resilience.recovery import layout_of


@pytest.fixture
def memory(tmp_path, monkeypatch) -> NodeMemory:
    monkeypatch.setenv("RINGTMP_NODE_MEMORY", str(tmp_path / "memory"))
    node = NodeMemory("run", "here")
    node.make()
    return node


def shape(generation: int = 7, stage: int = 0, layers: tuple = (3, 4), counts: tuple = (5, 0)) -> ReplicaLayout:
    tables = tuple({"type": "dense", "n": n} for n in layers)
    return ReplicaLayout(generation, stage, 0, layers, counts, tables, 9, ("m", "v"), "<f4")


def fill(copy: StageReplica, step: int, seed: int) -> None:
    copy.begin()
    for place in range(len(copy.layout.layers)):
        flat, slots = copy.arrays(place)
        for array in (flat, *slots.values()):
            array[:] = np.random.default_rng(seed).random(array.size)
        copy.seal(place)
    copy.commit(step)


def test_a_copy_is_found_as_it_was_written(memory):
    a, b = memory.create(shape(), holder=2)
    fill(a, 10, 1)
    fill(b, 11, 2)
    held, faults = memory.inventory()
    assert not faults
    assert [(copy.generation, copy.step, copy.layers, copy.total) for copy in held] == [
        (7, step, (3, 4), 9) for step in (10, 11)
    ]
    again = StageReplica(a.path)
    assert again.layout == a.layout and again.sound()
    for name in ("flat", "m", "v"):
        np.testing.assert_array_equal(again.array(0, name), a.array(0, name))
        assert a.array(0, name).ctypes.data % 64 == 0


def test_one_that_is_being_written_does_not_count(memory):
    a, b = memory.create(shape(), holder=0)
    fill(a, 3, 1)
    assert [copy.step for copy in memory.inventory()[0]] == [3]  # b has never been written
    fill(b, 4, 2)
    a.begin()
    assert [copy.step for copy in memory.inventory()[0]] == [4]


@pytest.mark.parametrize("where", [0, 9, 70, -1, -64, "sum", "slot"])
def test_any_byte_that_changes_is_noticed(memory, where):
    """In the head, the description, the checksums or the arrays."""
    a, _ = memory.create(shape(counts=(5, 3)), holder=0)
    fill(a, 3, 1)
    if where == "sum":
        a.sums[1] ^= 1
    elif where == "slot":
        a.array(1, "v").view(np.uint8)[2] ^= 0x10
    else:
        with a.path.open("r+b") as file:
            data = bytearray(file.read())
            data[where] ^= 0x41
            file.seek(0)
            file.write(data)
    held, faults = memory.inventory()
    if where in (-1, -64) and held:  # padding behind the last array means nothing
        assert not faults
    else:
        assert held == [] and len(faults) == 1 and a.path.name in faults[0]


@pytest.mark.parametrize("size", [0, 10, 63, 64, 100, 500])
def test_one_that_is_cut_short_is_noticed(memory, size):
    a, _ = memory.create(shape(), holder=0)
    fill(a, 3, 1)
    os.truncate(a.path, size)
    held, faults = memory.inventory()
    assert held == [] and len(faults) == 1


def test_full_memory_is_an_error_and_leaves_nothing(memory, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        memory.create(shape(), holder=0)
    assert list(memory.folder.iterdir()) == []


def test_older_generations_are_forgotten_and_all_is_removed(memory):
    for generation in (6, 7, 8):
        fill(memory.create(shape(generation), 0)[0], 1, 1)
    memory.forget(8)
    assert {copy.generation for copy in memory.inventory()[0]} == {8}
    memory.remove()
    assert not memory.folder.parent.parent.exists()


def held(generation: int, step: int, *layers: int, path: str = "p") -> FoundReplica:
    return FoundReplica(path, generation, step, layers, tuple({} for _ in layers), 4)


def test_the_newest_step_that_is_whole_counts():
    here = [(0, held(5, 8, 0, 1)), (0, held(5, 9, 0, 1, path="q")), (1, held(5, 8, 2, 3))]
    found = newest(here, 4)
    assert found[:2] == (5, 8)
    assert {part.layer: at for part, at in found[2].items()} == {0: (0, "p"), 1: (0, "p"), 2: (1, "p"), 3: (1, "p")}
    assert newest([*here, (2, held(5, 9, 2, 3))], 4)[1] == 9
    assert newest(here[:2], 4) is None
    assert newest([], 4) is None


def test_generations_are_never_mixed_and_the_later_one_comes_first():
    mixed = [(0, held(5, 8, 0, 1)), (1, held(6, 8, 2, 3))]
    assert newest(mixed, 4) is None
    old = [(0, held(5, 8, 0, 1, 2, 3)), (0, held(6, 7, 0, 1)), (1, held(6, 7, 2, 3))]
    assert newest(old, 4)[:2] == (6, 7)
    assert newest(old[:2], 4)[:2] == (5, 8)  # the later one had not become whole


def test_nodes_by_rank(monkeypatch):
    monkeypatch.setenv("RINGTMP_NODES", "a,b")
    assert [node_name(rank) for rank in range(2)] == ["a", "b"]
    assert node_name(2) not in ("a", "b", "")


def train(stage: Stage, steps: range) -> None:
    for step in steps:
        for state in stage.states:
            state.gradient[:] = np.random.default_rng((step, state.index)).standard_normal(state.gradient.size)
        stage.update(1e-2, step + 1)


def stage_of(
    optimizer: str, memory: NodeMemory | None = None, between: Callable[[], None] | None = None
) -> tuple[Stage, tuple[StageReplica, StageReplica] | None]:
    model = build_model("mlp:6-5x3-4", "auto", (6,), "classes", 4, 1, False)
    stage = Stage(model, 1, 4, np.dtype("f4"), Optimizer(optimizer), 2, 1)
    sides = None
    if memory:
        what = {"generation": 1, "stage": 0, "owner": 0}
        sides = memory.create(layout_of(model, 1, 4, stage.optimizer.slots, "<f4", **what), 0)
        stage.house(sides, between)
    stage.initialise(3)
    stage.commit(0)
    return stage, sides


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_a_stage_in_node_memory_has_the_same_bits(memory, optimizer):
    plain, _ = stage_of(optimizer)
    housed, sides = stage_of(optimizer, memory)
    for step in range(5):
        train(plain, range(step, step + 1))
        train(housed, range(step, step + 1))
        live, before = sides[(step + 1) % 2], sides[step % 2]
        assert (live.step, before.step) == (step + 1, step)
        assert live.sound() and before.sound()
        for place, (one, other) in enumerate(zip(plain.states, housed.states, strict=True)):
            np.testing.assert_array_equal(one.flat, other.flat)
            np.testing.assert_array_equal(one.flat, live.array(place))
            for name, slot in one.slots.items():
                np.testing.assert_array_equal(slot, live.array(place, name))
            for name, view in other.parameters.items():  # what F and I will use
                assert np.shares_memory(view, other.flat if name != "derived" else other.derived) or not view.size
            np.testing.assert_array_equal(one.derived, other.derived)


def _killed_in_its_update(root: str, when: int) -> None:
    os.environ["RINGTMP_NODE_MEMORY"] = root
    memory = NodeMemory("run", "here")
    memory.make()
    calls = itertools.count()
    layers = 3

    def between() -> None:
        if next(calls) == 4 * layers + when:  # after four whole updates
            os.kill(os.getpid(), signal.SIGKILL)

    stage, _ = stage_of("adamw", memory, between)
    train(stage, range(6))


@pytest.mark.parametrize("when", [0, 1, 2, 4])
def test_a_kill_between_two_layers_leaves_the_version_before(memory, tmp_path, when):
    child = multiprocessing.get_context("spawn").Process(
        target=_killed_in_its_update, args=(str(tmp_path / "memory"), when)
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    whole = 4 if when < 3 else 5
    held, faults = memory.inventory()
    assert not faults
    assert [copy.step for copy in held] == [whole]
    plain, _ = stage_of("adamw")
    train(plain, range(whole))
    copy = StageReplica(next(path for path in memory.folder.iterdir() if StageReplica(path).step == whole))
    for place, state in enumerate(plain.states):
        np.testing.assert_array_equal(copy.array(place), state.flat)
        np.testing.assert_array_equal(copy.array(place, "m"), state.slots["m"])
