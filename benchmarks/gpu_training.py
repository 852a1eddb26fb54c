"""Train on the bundled photographs in autocast to bfloat16: how many steps have a finite loss and gradient."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from gpu_cases import TRAINED
from gpu_record import number
from gpu_session import Session

import parhelion
from parhelion.data.sources.fashion import bundled_images
from parhelion.speed.networks import SEED

# All models take the first so many steps before one goes on to the last.
STAGES, REHEARSED = (100, 500), (2, 3)
# Steps between two looks at what the GPU found, and lines of the report.
LOOK = 20
# Adam's rate rises over the first steps, as recipes have it; gradients are clipped to a norm.
LEARNING_RATE, WARMUP_STEPS, CLIP_NORM = 5e-4, 50, 1.0


@dataclass
class Training:
    """A model on its way: what it has seen, and what came of each step."""

    model: str
    session: Session
    losses: list[float] = field(default_factory=list)
    finite_steps: int = 0

    def __post_init__(self) -> None:
        scale, device = self.session.scale, self.session.device
        images, labels, names = bundled_images("train")
        self.pixels, self.classes = torch.tensor(images, device=device), torch.tensor(labels, device=device)
        grey = self.pixels.float().div(255)
        self.mean, self.deviation = grey.mean(), grey.std()
        self.image_px = scale.image_px(self.model)
        torch.manual_seed(SEED)
        network = parhelion.create_model(scale.model(self.model), image_size=self.image_px, num_classes=len(names))
        self.network = network.to(device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
        self.order = torch.Generator().manual_seed(SEED)

    @property
    def steps(self) -> int:
        """Steps so far."""
        return len(self.losses)

    def go_on(self, steps: int) -> None:
        """Take so many steps more."""
        losses, finite = (torch.zeros(steps, device=self.session.device) for _ in range(2))
        for place in range(steps):
            losses[place], finite[place] = self._step(self.steps + place)
        self.finite_steps += int(finite.sum())
        self.losses += losses.tolist()

    def _step(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and whether it and the gradients are finite."""
        scale, device = self.session.scale, self.session.device
        some = torch.randint(len(self.classes), (scale.step_images,), generator=self.order).to(device)
        x = self.pixels[some, None].float().div(255).sub(self.mean).div(self.deviation).expand(-1, 3, -1, -1)
        x = F.interpolate(x, size=(self.image_px, self.image_px), mode="bilinear")
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = self.network(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), self.classes[some])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        self.optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS)
        self.optimizer.step()
        return loss.detach(), loss.isfinite() & norm.isfinite()

    def row(self) -> dict[str, Any]:
        """The run as JSON; a loss that is not finite is None there, and counted."""
        ends = self.losses[-LOOK:]
        return {
            "model": self.model,
            "steps": self.steps,
            "finite_steps": self.finite_steps,
            "losses": {"first": number(self.losses[0]), "last": number(sum(ends) / len(ends))},
            "image_px": self.image_px,
            "batch": self.session.scale.step_images,
        }


def training_steps(session: Session) -> None:
    """Train each model for the first stage, then each for the next, as long as there is time."""
    trainings = [Training(model, session) for model in TRAINED]
    for stage in REHEARSED if session.rehearsal else STAGES:
        for training in trainings:
            while training.steps < stage and session.left > 0:
                started = time.monotonic()
                training.go_on(min(LOOK, stage - training.steps))
                session.record.put("steps", training.row(), known_by="model")
                session.say(
                    f"{training.model}: {training.steps} steps, {time.monotonic() - started:.1f} s for the last"
                )
            if training.steps:
                print(text_of_steps(training.row()), flush=True)
    for training in trainings:
        wrong = training.steps - training.finite_steps
        if wrong:
            session.blame(
                f"{training.model}: {wrong} of {training.steps} training steps have a loss or gradient of NaN"
            )


def text_of_steps(run: dict[str, Any]) -> str:
    """The run as a line."""
    return f"{run['model']}: {run['finite_steps']} of {run['steps']} training steps finite, loss {run['losses']}"
