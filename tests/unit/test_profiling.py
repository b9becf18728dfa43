"""Profile of a study: kinds inside stages add up on a clock that we move, and products are counted by their shapes."""

import pytest
import torch
import torch.nn.functional as F

from polysem import profiling
from polysem.models.hooks import hooked
from polysem.onednn import FrozenLinears, Linear, bare_rate
from polysem.profiling import KINDS, Profile, counts_as, profile_lines, profiled


class Clock:
    now = 5.0

    def __call__(self) -> float:
        return self.now


def test_kinds_inside_stages_add_up_to_the_clock():
    cpu, wall = Clock(), Clock()
    seen = Profile(cpu, wall)
    with seen.stage("trials"):
        cpu.now, wall.now = 6.0, 9.0
        with seen.kind("io"):
            cpu.now += 2.0
            with seen.kind("model"):
                cpu.now += 4.0
                seen.add_flops(100.0)
            cpu.now += 1.0
            seen.add_flops(7.0)  # of no model
        cpu.now, wall.now = cpu.now + 0.5, wall.now + 8.5
    seen._turn()
    assert {name: dict(kinds) for name, kinds in seen.seconds.items()} == {
        profiling.START: {"start-up": 5.0},
        "trials": {"statistics": 1.5, "io": 3.0, "model": 4.0},
    }
    table = seen.table(rate=50.0)
    assert table["total"]["cpu_s"] == cpu.now == 13.5
    assert table["stages"]["trials"] | {"products_s": 2.0, "waited_s": 4.0} == table["stages"]["trials"]
    text = profile_lines(table)
    assert [line.split()[0] for line in text[1:4]] == ["before", "trials", "total"]
    assert "15% of all" in text[-1]


def test_an_error_leaves_its_kind_and_stage():
    with profiled() as seen:
        with pytest.raises(ZeroDivisionError), profiling.stage("plan"):
            counts_as("io")(lambda: 1 / 0)()
        assert (seen._at, seen._kinds) == (profiling.START, ["start-up"])
    assert not profiling.is_profiled()
    assert set(seen.seconds["plan"]) <= set(KINDS)


def test_products_are_counted_by_their_shapes_the_way_back_too():
    """3 x 8 by 8 x 5, plainly, prepared, and through a model's modules with a gradient: 240 operations each way."""
    module = torch.nn.Linear(8, 5).requires_grad_(False)
    x = torch.ones(3, 8, requires_grad=True)

    @counts_as("model")
    def prepared():
        return Linear(module.weight, module.bias, pack=True)(x.detach())

    @counts_as("model")
    def back(products):
        with products, hooked(module, {}):
            torch.autograd.grad(module(x).sum(), x)

    with profiled() as seen:
        with profiling.stage("trials"):
            prepared()
            F.linear(x, module.weight)  # nobody's model
        with profiling.stage("response"):
            back(FrozenLinears())
    assert seen.flops == {"trials": 240.0, "response": 480.0}


def test_a_bare_product_has_a_rate():
    assert bare_rate(64, rows=32, rounds=1) > 1e6


def test_stages_of_an_earlier_run_stay_and_are_written_one_by_one():
    cpu = Clock()
    first, second = Profile(cpu, cpu), Profile(cpu, cpu)
    written = []
    first.after_stage = lambda: written.append(set(first.table(1.0)["stages"]))
    with first.stage("features"):
        cpu.now += 3.0
    with pytest.raises(ZeroDivisionError), first.stage("pairs"):
        raise ZeroDivisionError
    assert written == [{profiling.START, "features"}]
    with second.stage("trials"):
        cpu.now += 2.0
    table = second.table(1.0, earlier=first.table(1.0)["stages"])
    assert {name: row["statistics_s"] for name, row in table["stages"].items()} == {
        profiling.START: 0.0,
        "features": 3.0,
        "pairs": 0.0,
        "trials": 2.0,
    }
    assert table["total"]["statistics_s"] == 5.0
