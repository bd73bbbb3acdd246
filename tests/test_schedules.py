"""Learning rates over a run against closed forms, and what a schedule refuses."""
import math
import warnings

import pytest
import torch

from slm.errors import UserError
from slm.optim import decay_start, make_scheduler
from slm.schema import Optim


def factor(schedule: str, i: int, total: int, warmup: int, final: float, decay: float) -> float:
    if i < warmup:
        return (i + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        start = max(warmup, total - max(1, round(decay * total)))
        if i < start:
            return 1.0
        return final + (1 - final) * (1 - math.sqrt((i - start) / (total - start)))
    x = (i - warmup) / (total - warmup)
    if schedule == "linear":
        return 1 - (1 - final) * x
    return final + (1 - final) * (1 + math.cos(math.pi * x)) / 2


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("total, warmup, final, decay", [
    (40, 0, 0.1, 0.2), (40, 5, 0.1, 0.2), (40, 1, 0.0, 0.5), (40, 39, 0.1, 0.3), (1, 0, 0.0, 0.2),
    (7, 3, 1.0, 1.0)])
def test_schedule_in_closed_form(schedule, total, warmup, final, decay):
    """Each step's learning rate, for two groups with their own, and no warning on the way."""
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([dict(params=params[:1], lr=0.3),
                                   dict(params=params[1:], lr=2e-3)])
    optim = Optim(schedule=schedule, final_lr=final, decay=decay)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = make_scheduler(optimizer, optim, total, warmup)
        for i in range(total):
            got = [group["lr"] for group in optimizer.param_groups]
            expected = factor(schedule, i, total, warmup, final, decay)
            assert got == pytest.approx([0.3 * expected, 2e-3 * expected], rel=1e-12), i
            optimizer.step()
            scheduler.step()
    assert optimizer.param_groups[0]["lr"] > 0 or final == 0


def test_wsd_horizons_share_their_trunk():
    """Until it decays, a shorter run has the learning rates of a longer one."""
    def rates(total):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = make_scheduler(optimizer, optim, total, 4)
        out = []
        for _ in range(total):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return out

    optim = Optim(schedule="wsd", decay=0.25)
    short, long = rates(20), rates(40)
    start = decay_start(optim, 20)
    assert start == 15 and short[:start + 1] == long[:start + 1] and short[start + 1] < 1


def test_what_a_schedule_refuses():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(UserError, match="cosine, linear, wsd"):
        make_scheduler(optimizer, Optim.model_construct(**{**Optim().model_dump(),
                                                           "schedule": "step"}), 10, 0)
    with pytest.raises(UserError, match="fewer than the run's 10"):
        make_scheduler(optimizer, Optim(), 10, 10)
