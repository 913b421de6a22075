"""Several candidate prompts: each is tried, and the one that reconstructs best is kept.

An attacker does not know what an image shows. The paper's answer: solve with every candidate, and keep the one
with the lowest final loss, which needs no original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adversary.attacks.base import Attack, Callback, Problem, Reconstruction
from adversary.priors.prior import Prior, Text
from splitsight.errors import UserError

__all__ = ["Prompted", "embed_prompts", "solve_with_prompts"]


@dataclass
class Prompted:
    """The answer of the prompts that won.

    Attributes:
        answer: its figures of effort are the sums over all prompts.
        won: the prompt of each frame.
        losses: final loss of each frame, ``(K,)``, by prompt.
    """

    answer: Reconstruction
    won: list[str]
    losses: dict[str, Tensor]


def embed_prompts(prior: Prior, prompts: Sequence[str]) -> dict[str, Text]:
    """Each prompt embedded.

    Raises:
        UserError: no prompt at all, one without a word, or one given twice.
    """
    if not prompts:
        raise UserError("the list of prompts is empty: give at least one text, or leave prompts out")
    for prompt in prompts:
        if not prompt.strip():
            raise UserError("a prompt is empty: give a text, or leave --prompt out for an attack without one")
        if prompts.count(prompt) > 1:
            raise UserError(f"the prompt '{prompt}' is given twice: give each text once")
    return {prompt: prior.embed_text([prompt]) for prompt in prompts}


def solve_with_prompts(
    attack: Attack, problem: Problem, texts: Mapping[str, Text], callback: Callback | None = None
) -> Prompted:
    """Solve once a prompt, and choose for each frame, or for a whole window, by final loss.

    Args:
        attack: one that takes text.
        problem: its own text is not used.
        texts: prompt → embedding, in the order in which ties are decided.
        callback: keeps the time, which is shared among the prompts.
    """
    callback = callback or Callback()
    answers: list[Reconstruction] = []
    losses: dict[str, Tensor] = {}
    for i, (prompt, text) in enumerate(texts.items()):
        answer = attack.reconstruct(replace(problem, text=text), callback=callback.part(1 / (len(texts) - i)))
        found = torch.full((problem.frames,), answer.loss) if answer.losses is None else answer.losses.cpu()
        losses[prompt] = found.mean().expand_as(found) if attack.windowed else found
        answers.append(answer)
    # a prompt that had no time for a single step has no loss; it never wins against one that had
    table = torch.stack(list(losses.values())).nan_to_num(nan=math.inf)
    best = table.argmin(0)
    frames = torch.arange(problem.frames)
    names = list(texts)
    images = torch.stack([a.images.cpu() for a in answers])[best, frames]
    kept = torch.stack(list(losses.values()))[best, frames]
    return Prompted(
        Reconstruction(
            images,
            float(kept.mean()),
            sum(a.iterations for a in answers),
            sum(a.model_evaluations for a in answers),
            sum(a.seconds for a in answers),
            kept,
            answers[int(best[0])].curve,
            answers[0].about,
        ),
        [names[i] for i in best.tolist()],
        losses,
    )
