"""What the ranks of ``tests/test_parallel.py`` run: python parallel_worker.py FOLDER.

A world of 2 ranks, then one of 4; the results of each rank are left in FOLDER/SIZE/RANK.pt. The
test process makes the same inputs from the same seeds. No case asserts anything here: it returns
tensors and error texts.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

import losslab
from laws.settings import ON_SOFTMAX
from losslab import parallel
from losslab.parallel import ClassSplit, exchange

ROWS, CLASSES, FEATURES = 5, 9, 4
SIZES = {  # classes on each rank
    2: {"even": (5, 4), "uneven": (8, 1), "none here": (0, 9)},
    4: {"even": (3, 3, 3, 0), "uneven": (1, 5, 1, 2), "none here": (0, 6, 0, 3)},
}
INF, NAN = float("inf"), float("nan")
OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {},
    "weighted mean": {"weight": True},
    "ignoring": {"weight": True, "ignore_index": 2, "reduction": "none"},
    "smoothed": {"weight": True, "label_smoothing": 0.2, "reduction": "none"},
    "smoothed, ignoring": {"label_smoothing": 0.1, "ignore_index": 2},
    "smoothed to even": {"label_smoothing": 1.0, "weight": True, "reduction": "sum"},
    "soft": {"weight": True, "reduction": "none"},
    "soft, smoothed": {"label_smoothing": 0.3, "weight": True},
}
FEW = ("cross_entropy", "encouraging", "focal + 0.5*expectation")
CORNERS = (  # logits of four classes and the target
    ([5.0, -INF, -INF, -INF], 0),
    ([-INF, -INF, -INF, 5.0], 3),
    ([-INF, 1.0, 2.0, 3.0], 0),
    ([0.5, 1.0, -INF, 3.0], 2),
    ([1.0, INF, 0.0, 2.0], 0),
    ([1.0, 0.0, INF, 2.0], 3),
    ([1.0, INF, 0.0, INF], 2),
    ([INF, 1.0, 2.0, 3.0], 0),
    ([1.0, 2.0, 3.0, INF], 3),
    ([NAN, 1.0, 2.0, 3.0], 0),
    ([1.0, 2.0, 3.0, NAN], 1),
    ([-INF, -INF, -INF, -INF], 1),
    ([INF, INF, 0.0, 1.0], 0),
    ([200.0, 0.0, 0.0, 0.0], 0),
    ([-200.0, 0.0, 0.0, 0.0], 0),
    ([1e4, 1e4, 1e4, 1e4], 1),
    ([-1e38, 1e38, 0.0, 1.0], 2),
    ([0.0, -1e30, -1e30, 1.0], 0),
)
CORNER_SIZES = {2: (1, 3), 4: (1, 0, 2, 1)}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64) * scale


def classes(*shape: int, seed: int = 0) -> Tensor:
    """Targets, the first of which is the class that "ignoring" ignores."""
    target = torch.randint(CLASSES, shape, generator=generator(seed))
    target.view(-1)[0] = 2
    return target


def weights() -> Tensor:
    w = torch.rand(CLASSES, generator=generator(11), dtype=torch.float64) + 0.2
    w[4] = 0
    return w


def soft_target(*shape: int) -> Tensor:
    t = torch.rand(*shape, generator=generator(3), dtype=torch.float64)
    t = torch.where(torch.rand(*shape, generator=generator(4)) < 0.3, 0, t)
    return t / t.sum(1, keepdim=True)


def upstream(shape: Any) -> Tensor:
    return torch.randn(shape, generator=generator(7), dtype=torch.float64)


def options(name: str) -> dict[str, Any]:
    given = OPTIONS[name]
    return given | {"weight": weights()} if given.get("weight") else dict(given)


def target_for(name: str, logits: Tensor) -> Tensor:
    if name.startswith("soft"):
        return soft_target(*logits.shape)
    return classes(logits.shape[0], *logits.shape[2:])


def hinge(a: Tensor) -> Tensor:
    return torch.relu(1 - a)


@dataclass
class World:
    rank: int
    size: int
    results: dict[str, Any] = field(default_factory=dict)

    def split(self, sizes: tuple[int, ...]) -> ClassSplit:
        return ClassSplit(sum(sizes[: self.rank]), sizes[self.rank], sum(sizes))

    def keep(self, name: str, run: Callable[[], Any]) -> None:
        """The result of one case, or the text of what it raised."""
        try:
            self.results[name] = run()
        except (ValueError, RuntimeError, IndexError) as error:
            self.results[name] = f"{type(error).__name__}: {error}"


def loss_and_gradient(
    world: World, loss: Any, logits: Tensor, target: Tensor, sizes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    split = world.split(sizes)
    here = slice(split.start, split.stop)
    leaf = logits[:, here].clone().requires_grad_()
    part = target[:, here] if target.is_floating_point() else target
    value = parallel.split_loss(leaf, part, loss, split)
    value.backward(upstream(value.shape).to(value.dtype))
    return value.detach(), leaf.grad


def few_losses_everywhere(world: World) -> None:
    for shares, sizes in SIZES[world.size].items():
        for name in OPTIONS:
            for spec in FEW:
                loss = losslab.loss(spec, **options(name))
                for scale in (2.0, 25.0) if spec == "encouraging" else (2.0,):
                    logits = normal(ROWS, CLASSES, scale=scale)
                    world.results[f"{shares}/{name}/{spec}/{scale}"] = loss_and_gradient(
                        world, loss, logits, target_for(name, logits), sizes
                    )


def all_losses(world: World) -> None:
    logits, sizes = normal(ROWS, CLASSES), SIZES[world.size]["uneven"]
    for setting in ON_SOFTMAX:
        for name in ("ignoring", "smoothed", "soft"):
            loss = losslab.loss(setting.spec, **options(name))
            world.results[f"{setting.spec}/{name}"] = loss_and_gradient(
                world, loss, logits, target_for(name, logits), sizes
            )


def other_ways_in(world: World) -> None:
    """Shapes, plain ψ, sums with different options, split found by gathering."""
    sizes = SIZES[world.size]["uneven"]
    image = normal(2, CLASSES, 3, 2)
    for name in OPTIONS:
        loss = losslab.loss("encouraging", **options(name))
        world.results[f"image/{name}"] = loss_and_gradient(
            world, loss, image, target_for(name, image), sizes
        )
    row, split = normal(CLASSES), world.split(sizes)
    for name in ("smoothed", "soft", "weighted mean"):
        leaf = split.part(row).clone().requires_grad_()
        target = split.part(soft_target(1, CLASSES)[0]) if name == "soft" else torch.tensor(3)
        loss = losslab.loss("focal", **options(name))
        value = parallel.split_loss(leaf, target, loss, split)
        value.backward()
        world.results[f"row/{name}"] = (value.detach(), leaf.grad)
    logits = normal(ROWS, CLASSES)
    different = losslab.loss("focal", weight=weights()) - 0.3 * losslab.loss("hinge")
    for name, loss in {"psi": hinge, "spec": "mae", "different": different}.items():
        world.results[name] = loss_and_gradient(world, loss, logits, classes(ROWS), sizes)
    gathered = ClassSplit.gather(sizes[world.rank])
    world.results["gathered"] = (gathered.start, gathered.size, gathered.total)
    module = parallel.SplitLoss("mixed(focus=switch(0, 0.5, at=0.5))", split)
    module.set_progress(0.9)
    leaf = logits[:, split.start : split.stop]
    world.results["progress"] = module(leaf, classes(ROWS))


def log_odds(world: World) -> None:
    split = world.split(CORNER_SIZES[world.size])
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([row for row, _ in CORNERS], dtype=dtype)
        target = torch.tensor([y for _, y in CORNERS])
        leaf = logits[:, split.start : split.stop].clone().requires_grad_()
        a = parallel.target_log_odds(leaf, target, split)
        a.backward(torch.ones_like(a))
        world.results[f"corners/{dtype}"] = (a.detach(), leaf.grad)
        loss = losslab.loss("cross_entropy", label_smoothing=0.1, reduction="none")
        smoothed = parallel.split_loss(leaf.detach(), target, loss, split)
        world.results[f"smoothed corners/{dtype}"] = smoothed
        leaf.grad = None
        loss = losslab.OddsLoss(torch.neg, label_smoothing=0.1, reduction="none")
        parallel.split_loss(leaf, target, loss, split).sum().backward()
        world.results[f"smoothed slopes/{dtype}"] = (leaf.grad,)
    alone = ClassSplit(0 if world.rank == 0 else 1, int(world.rank == 0), 1)
    leaf = torch.ones(2, alone.size, requires_grad=True)
    a = parallel.target_log_odds(leaf, torch.zeros(2, dtype=torch.long), alone)
    a.sum().backward()
    world.results["one class"] = (a.detach(), leaf.grad)


def no_rows(world: World) -> None:
    split = world.split(SIZES[world.size]["none here"])
    leaf = torch.zeros(0, split.size, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.long)
    for smoothing in (0.0, 0.1):
        for reduction in ("none", "sum", "mean"):
            loss = losslab.loss("focal", reduction=reduction, label_smoothing=smoothing)
            value = parallel.split_loss(leaf, nothing, loss, split)
            value.sum().backward()
            world.results[f"empty/{smoothing}/{reduction}"] = value.detach()
        ignored = torch.full((ROWS,), -100)
        logits = normal(ROWS, CLASSES)[:, split.start : split.stop].requires_grad_()
        for zero in (False, True):
            loss = losslab.loss("focal", label_smoothing=smoothing, zero_if_empty=zero)
            value = parallel.split_loss(logits, ignored, loss, split)
            world.results[f"ignored/{smoothing}/{zero}"] = value.detach()
        value.backward()
        world.results[f"ignored/{smoothing}/gradient"] = logits.grad
        hidden, shard = torch.zeros(0, FEATURES), torch.zeros(split.size, FEATURES)
        tensors = (hidden.requires_grad_(), shard.requires_grad_())
        loss = losslab.loss("focal", reduction="sum", label_smoothing=smoothing)
        parallel.linear_loss(*tensors, nothing, loss, split=split).backward()
        world.results[f"empty linear/{smoothing}"] = shard.grad


def half_types(world: World) -> None:
    split = world.split(SIZES[world.size]["even"])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = normal(64, CLASSES, scale=4.0).to(dtype)
        for smoothing in (0.0, 0.1):
            loss = losslab.loss("cross_entropy", label_smoothing=smoothing, reduction="none")
            leaf = logits[:, split.start : split.stop].clone().requires_grad_()
            value = parallel.split_loss(leaf, classes(64), loss, split)
            value.backward(upstream(value.shape).to(value.dtype))
            world.results[f"half/{dtype}/{smoothing}"] = (value.detach(), leaf.grad)


LINEAR: dict[str, tuple[dict[str, Any], str, torch.dtype]] = {
    "plain": ({}, "mean", torch.float64),
    "chunks of two": ({"chunk_rows": 2}, "ignoring", torch.float64),
    "scaled": ({"logit_scale": 2.5, "chunk_rows": 4}, "weighted mean", torch.float64),
    "capped": ({"softcap": 1.5, "logit_scale": 0.7, "chunk_rows": 3}, "ignoring", torch.float64),
    "smoothed": ({"softcap": 1.5, "chunk_rows": 2}, "smoothed", torch.float64),
    "smoothed, ignoring": ({"logit_scale": 0.5}, "smoothed, ignoring", torch.float64),
    "z-loss": ({"z_loss": 0.01, "chunk_rows": 2}, "ignoring", torch.float64),
    "z-loss, smoothed": ({"z_loss": 0.1}, "smoothed, ignoring", torch.float64),
    "soft": ({"z_loss": 0.1, "chunk_rows": 2}, "soft", torch.float64),
    "bfloat16": ({"chunk_rows": 3}, "mean", torch.bfloat16),
    "float16, capped": ({"chunk_rows": 3, "softcap": 3.0}, "ignoring", torch.float16),
}


def linear_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = normal(ROWS, FEATURES, seed=1), normal(CLASSES, FEATURES, seed=2)
    return hidden.to(dtype), weight.to(dtype), normal(CLASSES, seed=3).to(dtype)


def linear_target(name: str) -> Tensor:
    return soft_target(ROWS, CLASSES) if name.startswith("soft") else classes(ROWS)


def tied_inputs() -> tuple[Tensor, Tensor]:
    """Whole numbers, so that products are exact; every class has the logits of another one."""
    hidden = torch.randint(-3, 4, (40, FEATURES), generator=generator(5)).float()
    weight = torch.randint(-3, 4, (CLASSES, FEATURES), generator=generator(6)).float()
    weight[5:] = weight[:4]
    return hidden, weight


def only_class_3() -> Tensor:
    bias = torch.full((CLASSES,), -INF)
    bias[3] = 2.0
    return bias


def linear(world: World) -> None:
    for shares, sizes in SIZES[world.size].items():
        split = world.split(sizes)
        hidden, weight = tied_inputs()
        for name, smoothing in {"hard": 0.0, "smoothed": 0.1}.items():
            _, rows = parallel.linear_loss(
                *(hidden, split.part(weight), classes(40), "focal"),
                **{"split": split, "label_smoothing": smoothing, "ignore_index": 2},
                **{"return_rows": True, "chunk_rows": 7, "reduction": "none"},
            )
            world.results[f"linear/{shares}/rows/{name}"] = tuple(rows)
        for case, (keywords, name, dtype) in LINEAR.items():
            hidden, weight, bias = linear_inputs(dtype)
            leaves = [hidden, split.part(weight).clone(), split.part(bias).clone()]
            leaves = [x.requires_grad_() for x in leaves]
            target, loss = linear_target(name), losslab.loss("encouraging", **options(name))
            if target.is_floating_point():
                target = target[:, split.start : split.stop]
            value = parallel.linear_loss(
                *leaves[:2], target, loss, split=split, linear_bias=leaves[2], **keywords
            )
            value.backward(upstream(value.shape).to(value.dtype))
            world.results[f"linear/{shares}/{case}"] = (value.detach(), *(x.grad for x in leaves))
    split = world.split(SIZES[world.size]["uneven"])
    hidden, weight, _ = linear_inputs(torch.float32)
    world.results["linear/no competitor"] = {
        smoothing: tuple(
            parallel.linear_loss(
                *(hidden, torch.zeros(split.size, FEATURES), torch.full((ROWS,), 3)),
                **{"split": split, "linear_bias": split.part(only_class_3()), "return_rows": True},
                **{"label_smoothing": smoothing},
            )[1]
        )
        for smoothing in (0.0, 0.1)
    }
    weight = split.part(weight).requires_grad_()  # no bias, and a hidden state that is fixed
    states = hidden[:4].view(2, 2, FEATURES)
    loss = losslab.loss("focal", reduction="none")
    value = parallel.linear_loss(states, weight, classes(2, 2), loss, split=split)
    value.sum().backward()
    world.results["linear/states"] = (value.detach(), weight.grad)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        value = parallel.linear_loss(states, weight, classes(2, 2), loss, split=split)
    world.results["linear/autocast"] = value


def split_layer(world: World) -> None:
    """A layer of the user's own: sum_gradient makes the gradient of its shared input whole."""
    split = world.split(SIZES[world.size]["uneven"])
    hidden, weight, bias = linear_inputs(torch.float64)
    hidden.requires_grad_()
    logits = parallel.sum_gradient(hidden, split) @ split.part(weight).T + split.part(bias)
    parallel.split_loss(logits, classes(ROWS), "focal", split).backward()
    world.results["split layer"] = hidden.grad


def dtensors(world: World) -> None:
    mesh = init_device_mesh("cpu", (world.size,))
    for width in (CLASSES, 10, 5):
        logits, target = normal(ROWS, width), classes(ROWS) % width
        for name, placement in {"split": Shard(1), "whole": Replicate()}.items():
            leaf = distribute_tensor(logits.clone(), mesh, [placement]).requires_grad_()
            loss = losslab.loss("encouraging", label_smoothing=0.1)
            parallel.split_loss(leaf, target, loss).backward()
            alike = leaf.grad.placements == leaf.placements
            world.results[f"dtensor/{width}/{name}"] = (alike, leaf.grad.full_tensor())
    logits = distribute_tensor(normal(ROWS, CLASSES), mesh, [Shard(1)])
    target = distribute_tensor(classes(ROWS), mesh, [Replicate()])
    world.results["dtensor/log-odds"] = parallel.target_log_odds(logits, target)
    soft = distribute_tensor(soft_target(ROWS, CLASSES), mesh, [Shard(1)])
    world.results["dtensor/soft"] = parallel.split_loss(logits, soft, "focal")
    partial = logits.redistribute(placements=[Replicate()])
    partial = type(partial).from_local(partial.to_local(), mesh, [Partial()])
    world.keep("dtensor/partial", lambda: parallel.split_loss(partial, target, "focal"))
    rows = distribute_tensor(normal(CLASSES, ROWS), mesh, [Shard(0)])
    goal = distribute_tensor(classes(CLASSES) % ROWS, mesh, [Shard(0)])
    world.keep("dtensor/rows alone", lambda: parallel.split_loss(rows, goal, "focal"))
    weight = distribute_tensor(normal(CLASSES, FEATURES, seed=2), mesh, [Shard(0)])
    weight.requires_grad_()
    hidden = distribute_tensor(normal(ROWS, FEATURES, seed=1), mesh, [Replicate()])
    hidden.requires_grad_()
    parallel.linear_loss(hidden, weight, target, "focal").backward()
    grads = (hidden.grad.full_tensor(), weight.grad.full_tensor())
    world.results["dtensor/linear"] = grads


MESH_CASES = {
    "mean": ("mean", classes(ROWS)),
    "weighted mean": ("weighted mean", classes(ROWS)),
    "smoothed, ignoring": ("smoothed, ignoring", classes(ROWS)),
    "soft, smoothed": ("soft, smoothed", soft_target(ROWS, CLASSES)),
}


def rows_and_classes_on_a_mesh(world: World) -> None:
    """Rows over one dimension of the mesh (3 and 2 of them), classes over the other."""
    mesh = init_device_mesh("cpu", (2, world.size // 2))
    for classes_too in (True, False):
        placements = [Shard(0), Shard(1) if classes_too else Replicate()]
        for case, (name, target) in MESH_CASES.items():
            leaf = distribute_tensor(normal(ROWS, CLASSES), mesh, placements).requires_grad_()
            soft = target.is_floating_point()
            part = distribute_tensor(target, mesh, placements if soft else [Shard(0), Replicate()])
            loss = losslab.loss("encouraging", **options(name))
            value = parallel.split_loss(leaf, part, loss)
            (2 * value).backward()
            result = (
                value.detach(),
                leaf.grad.full_tensor(),
                leaf.grad.placements == leaf.placements,
            )
            world.results[f"mesh/{classes_too}/{case}"] = result
        loss = losslab.loss("focal", reduction="none")
        part = distribute_tensor(classes(ROWS), mesh, [Shard(0), Replicate()])
        world.results[f"mesh/{classes_too}/none"] = parallel.split_loss(leaf, part, loss)


@contextmanager
def counting() -> Any:
    """Counts the numbers that each exchange sends from here."""
    sent: list[int] = []
    reduce, gather = dist.all_reduce, dist.all_gather

    def all_reduce(x: Tensor, *args: Any, **keywords: Any) -> Any:
        sent.append(x.numel())
        return reduce(x, *args, **keywords)

    def all_gather(parts: Any, x: Tensor, **keywords: Any) -> Any:
        sent.append(x.numel())
        return gather(parts, x, **keywords)

    dist.all_reduce, dist.all_gather = all_reduce, all_gather
    try:
        yield sent
    finally:
        dist.all_reduce, dist.all_gather = reduce, gather


def compiled(world: World) -> None:
    """A linear loss amid what torch.compile makes of the rest; aot_eager traces without C++."""
    split = world.split(SIZES[world.size]["uneven"])
    (hidden, weight, _), target = linear_inputs(torch.float64), classes(ROWS)

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        return 2 * parallel.linear_loss(3 * hidden, weight, target, "focal", split=split)

    hidden, weight = hidden.requires_grad_(), split.part(weight).clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler looks at .grad of tensors that have none
        torch.compile(step, backend="aot_eager")(hidden, weight).backward()
    world.results["compiled"] = (hidden.grad, weight.grad)
    whole = torch.compile(lambda h, w: step(h, w), backend="aot_eager", fullgraph=True)
    world.keep("compiled whole", lambda: whole(hidden, weight))


def traffic(world: World) -> None:
    split = world.split(SIZES[world.size]["uneven"])
    hidden, weight, _ = linear_inputs(torch.float32)
    for name, smoothing in {"hard": 0.0, "smoothed": 0.1}.items():
        loss = losslab.loss("focal", label_smoothing=smoothing)
        leaf = normal(ROWS, CLASSES)[:, split.start : split.stop].requires_grad_()
        with counting() as forward:
            value = parallel.split_loss(leaf, classes(ROWS), loss, split)
        with counting() as backward:
            value.backward()
        leaves = (hidden.requires_grad_(), split.part(weight).clone().requires_grad_())
        with counting() as made:
            parallel.linear_loss(*leaves, classes(ROWS), loss, split=split, chunk_rows=1).backward()
        world.results[f"traffic/{name}"] = (forward, backward, made)


def mistakes(world: World) -> None:
    split = world.split(SIZES[world.size]["even"])
    leaf = normal(ROWS, CLASSES)[:, split.start : split.stop].requires_grad_()
    target = classes(ROWS)

    def second_derivative(**keywords: Any) -> Any:
        value = parallel.split_loss(leaf, target, losslab.loss("focal", **keywords), split)
        return torch.autograd.grad(value, leaf, create_graph=True)

    world.keep("second derivative", second_derivative)
    world.keep("second derivative, smoothed", lambda: second_derivative(label_smoothing=0.1))
    own = classes(ROWS, seed=world.rank + 1)
    splits = {
        "own targets": (split, own),
        "all at 0": (ClassSplit(0, split.size, CLASSES), target),
        "a gap": (ClassSplit(split.start, split.size, CLASSES + 1), target),
    }
    for name, (of, goal) in splits.items():
        for smoothing in (0.0, 0.1):
            run = partial(parallel.split_loss, leaf, goal, "focal", of, label_smoothing=smoothing)
            world.keep(f"{name}/{smoothing}", run)
    world.keep("out of range", lambda: parallel.split_loss(leaf, target + CLASSES, "focal", split))
    group = dist.new_group([0])
    world.keep("not in the group", lambda: ClassSplit.gather(3, group).total)
    world.keep("not in the group, even", lambda: ClassSplit.even(3, group).total)


def page() -> str:
    """The training in docs/parallel.md."""
    text = (Path(__file__).parent.parent / "docs" / "parallel.md").read_text()
    return text.split("```python\n")[1].split("```")[0]


def documented_training(world: World) -> None:
    scope: dict[str, Any] = {}
    leave, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    exec(compile(page(), "parallel.md", "exec"), scope)
    dist.destroy_process_group = leave
    world.results["training"] = scope["losses"]


def a_rank_dies(world: World) -> None:
    """Rank 1 leaves between the two exchanges of a step."""
    split = world.split(SIZES[world.size]["even"])
    leaf = normal(ROWS, CLASSES)[:, split.start : split.stop]
    if world.rank == 1:
        exchange.total = lambda *args, **keywords: os._exit(3)
    world.keep("death", lambda: parallel.split_loss(leaf, classes(ROWS), "focal", split))


def one_rank(rank: int, size: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=40),
    )
    world = World(rank, size)
    few_losses_everywhere(world)
    if size == 2:
        all_losses(world)
        half_types(world)
        documented_training(world)
        compiled(world)
    else:
        dtensors(world)
        rows_and_classes_on_a_mesh(world)
    for cases in (other_ways_in, log_odds, no_rows, linear, split_layer, traffic):
        cases(world)
    mistakes(world)
    torch.save(world.results, folder / f"{rank}.pt")
    a_rank_dies(world)
    (folder / f"death{rank}.txt").write_text(world.results["death"])


def start(rank: int, size: int, folder: Path) -> int:
    """A process of its own for one rank, made of this one, which has imported everything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which are idle here
        pid = os.fork()
    if pid:
        return pid
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1), os.dup2(log, 2)
    code = 1
    try:
        one_rank(rank, size, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)  # the group cannot be left in order: one of it is gone


def main(folder: Path) -> None:
    # here, so that not every rank takes seconds to do so
    import sklearn.datasets  # noqa: F401
    import torch._dynamo

    torch.set_num_threads(1)
    for size in (2, 4):
        here = folder / str(size)
        here.mkdir()
        ranks = [start(rank, size, here) for rank in range(size)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
        (here / "codes").write_text(" ".join(map(str, codes)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
