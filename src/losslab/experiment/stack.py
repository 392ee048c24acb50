"""Many networks of one architecture as one: their parameters stacked, their step one flat program.

A step of the module (forward, and the gradient of its parameters for a given gradient of its
logits) is traced once for each batch size, with ``torch.func.vmap`` over the stack, into a list of
plain tensor operations. Run without autograd and without vmap, it costs a few microseconds an
operation, however many networks there are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten
LossGradient = Callable[[Tensor], Tensor]  # logits (R, B, C) -> gradient of the losses
_EVALUATED = 1 << 22  # numbers that a piece of an evaluation may hold


class Unstackable(Exception):
    """Why a module cannot be trained in a stack."""


class Stack:
    """R networks: ``values`` (R, P) holds all parameters, in the order of ``names``."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.module = copy.deepcopy(modules[0])
        self.names = [n for n, p in self.module.named_parameters() if p.requires_grad]
        self.shapes = [self.module.get_parameter(n).shape for n in self.names]
        if not self.names:
            raise Unstackable("the model has no parameters to learn")
        states = [dict(m.named_parameters()) | dict(m.named_buffers()) for m in modules]
        kinds = {p.dtype for p in self.module.parameters()}
        if len(kinds) > 1:
            raise Unstackable("its parameters have different dtypes")
        with torch.no_grad():
            flat = [torch.cat([s[n].reshape(-1) for n in self.names]) for s in states]
            self.values = torch.stack(flat)
            others = [n for n in states[0] if n not in self.names]
            self.others = {n: torch.stack([s[n] for s in states]) for n in others}
        self._lay_out()

    def __len__(self) -> int:
        return len(self.values)

    def keep(self, rows: Tensor) -> None:
        """Only some of the networks from here on."""
        self.values = self.values[rows]
        self.others = {n: x[rows] for n, x in self.others.items()}
        self._lay_out()

    def gradient(self, inputs: Tensor, loss_gradient: LossGradient) -> Tensor:
        """(R, P) gradients for inputs (R, B, …), in memory that the next call uses again.

        What the model's buffers keep of a batch is kept.
        """
        if inputs.shape not in self._steps:
            self._steps[inputs.shape] = self._traced(inputs)
        with torch.no_grad():
            step = self._steps[inputs.shape]
            found = step(*self.parameters, *self.others.values(), inputs, loss_gradient)
            torch._foreach_copy_(self._gradients, list(found))
        return self._gradient

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """(R, N, C) logits of inputs (N, …) in evaluation mode."""
        self.module.eval()
        over = vmap(self._one, in_dims=([0] * len(self.names), [0] * len(self.others), None))
        wide = max(inputs[0].numel(), *(max(shape) for shape in self.shapes))
        size = max(1, _EVALUATED // (len(self) * wide))
        others = list(self.others.values())
        parts = [over(self.parameters, others, part) for part in inputs.split(size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def unstacked(self, row: int) -> nn.Module:
        """One of the networks as a module."""
        module = copy.deepcopy(self.module)
        state = dict(zip(self.names, self.parameters, strict=True)) | self.others
        with torch.no_grad():
            for name, own in (*module.named_parameters(), *module.named_buffers()):
                own.copy_(state[name][row])
        return module

    def check(self, inputs: Tensor) -> None:
        """Compare a step of the stack with one of a network by itself; leaves both as they were."""
        before = {n: x.clone() for n, x in self.others.items()}
        alone = self.unstacked(0).train()
        upstream: list[Tensor] = []

        def loss_gradient(logits: Tensor) -> Tensor:
            upstream.extend((logits.clone(), torch.sin(torch.arange(logits.numel()) * 1.7)))
            return upstream[1].view(logits.shape).to(logits)

        found = self.gradient(inputs, loss_gradient)[0]
        logits = alone(inputs[0])
        scale = upstream[1].view(upstream[0].shape)[0].to(logits)
        learnt = [alone.get_parameter(n) for n in self.names]
        grads = torch.autograd.grad(logits, learnt, scale, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, learnt, strict=True)]
        pairs = [(logits, upstream[0][0]), (torch.cat([g.reshape(-1) for g in flat]), found)]
        pairs += [(dict(alone.named_buffers())[n], x[0]) for n, x in self._buffers().items()]
        for own, stacked in pairs:
            if not torch.allclose(own.double(), stacked.double(), rtol=1e-3, atol=1e-5):
                raise Unstackable(
                    "a step in a stack is not the step alone: its output depends on more than its "
                    "parameters, buffers and inputs"
                )
        for name, value in before.items():
            self.others[name].copy_(value)

    def _buffers(self) -> dict[str, Tensor]:
        known = {n for n, _ in self.module.named_buffers()}
        return {n: x for n, x in self.others.items() if n in known}

    def _lay_out(self) -> None:
        """Name the parts of ``values`` and of its gradient; what was traced of others is void."""
        self._gradient = torch.empty_like(self.values)
        self.parameters, self._gradients = self._parts(self.values), self._parts(self._gradient)
        self._steps: dict[tuple[int, ...], fx.GraphModule] = {}

    def _parts(self, values: Tensor) -> list[Tensor]:
        parts = values.split([math.prod(shape) for shape in self.shapes], 1)
        return [
            part.view(len(self), *shape) for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def _one(self, parameters: Sequence[Tensor], others: Sequence[Tensor], inputs: Tensor) -> Any:
        state = dict(zip(self.names, parameters, strict=True))
        return functional_call(
            self.module, state | dict(zip(self.others, others, strict=True)), (inputs,)
        )

    def _traced(self, inputs: Tensor) -> fx.GraphModule:
        """The program of a step, in which the losses' gradient is asked for halfway."""
        learnt, count = len(self.names), len(self.names) + len(self.others)

        def step(*tensors: Tensor) -> tuple[Tensor, list[Tensor]]:
            parameters = [p.detach().requires_grad_() for p in tensors[:learnt]]
            with torch.enable_grad():
                logits = vmap(self._one, randomness="different")(
                    parameters, list(tensors[learnt:count]), tensors[count]
                )
            grads = torch.autograd.grad(logits, parameters, tensors[-1], allow_unused=True)
            pairs = zip(grads, parameters, strict=True)
            return logits, [torch.zeros_like(p) if g is None else g for g, p in pairs]

        tensors = [*self.parameters, *self.others.values(), inputs]
        with torch.no_grad():
            shape = self.predict(inputs[0, :1]).shape
        upstream = torch.zeros(len(self), inputs.shape[1], shape[-1], dtype=self.values.dtype)
        self.module.train()
        try:
            graph = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(
                *tensors, upstream.to(self.values.device)
            )
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise Unstackable(reason[0] if reason else type(error).__name__) from None
        _simplify(graph)
        return _asking(graph)


def _simplify(graph: fx.GraphModule) -> None:
    """Drop operations that change nothing; each would cost a microsecond or two."""
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise Unstackable(
                f"it draws random numbers in training ({node.target}), as dropout does, which "
                "would not be the numbers that each run draws alone"
            )
        if _does_nothing(node):
            node.replace_all_uses_with(node.args[0])
        elif _is_turned_product(node):
            _turn(graph.graph, node)
    graph.graph.eliminate_dead_code()


def _does_nothing(node: fx.Node) -> bool:
    if node.target in (aten.detach.default, aten.alias.default):
        return True
    if node.target is aten.mul.Scalar:
        return bool(node.args[1] == 1)
    if node.target is aten.permute.default:
        return list(node.args[1]) == sorted(node.args[1])  # type: ignore[arg-type]
    views = (aten.expand.default, aten.view.default, aten._unsafe_view.default)
    if node.target not in views:
        return False
    old, new = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    same = (tuple(old.shape), old.stride()) == (tuple(new.shape), new.stride())
    return same


def _is_turned_product(node: fx.Node) -> bool:
    """Whether it is (X Y)ᵀ, the form in which a linear layer's weight gets its gradient."""
    if node.target is not aten.transpose.int or sorted(node.args[1:]) != [1, 2]:  # type: ignore[type-var]
        return False
    product = node.args[0]
    return isinstance(product, fx.Node) and product.target is aten.bmm.default


def _turn(graph: fx.Graph, node: fx.Node) -> None:
    """(X Y)ᵀ as Yᵀ Xᵀ, which lies in memory as the weight does."""
    product: Any = node.args[0]
    with graph.inserting_before(product):
        turned = [graph.call_function(aten.transpose.int, (x, 1, 2)) for x in product.args]
        for new, x in zip(turned, product.args, strict=True):
            new.meta["val"] = x.meta["val"].transpose(1, 2)
        result = graph.call_function(aten.bmm.default, (turned[1], turned[0]))
    result.meta["val"] = node.meta["val"].contiguous()
    node.replace_all_uses_with(result)


def _asking(graph: fx.GraphModule) -> fx.GraphModule:
    """The program with the upstream gradient replaced by a call: loss_gradient(logits)."""
    nodes = graph.graph
    upstream = [node for node in nodes.nodes if node.op == "placeholder"][-1]
    output: Any = next(node for node in nodes.nodes if node.op == "output")
    logits, grads = output.args[0]
    after = logits if logits.op != "placeholder" else upstream
    with nodes.inserting_before(upstream):
        function = nodes.placeholder("loss_gradient")
    with nodes.inserting_after(after):
        asked = nodes.call_function(_call, (function, logits))
    upstream.replace_all_uses_with(asked)
    nodes.erase_node(upstream)
    output.args = (grads,)
    nodes.set_codegen(fx.graph.CodeGen())
    nodes.lint()
    graph.recompile()
    return graph


def _call(function: LossGradient, logits: Tensor) -> Tensor:
    return function(logits)
