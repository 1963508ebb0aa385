"""The schedule of the published segmentation runs: counted in steps, a warm-up and a polynomial."""

from pydantic import Field, model_validator

from mcbeit.optim import Beta, OptimConfig


class PolynomialConfig(OptimConfig):
    """How long, how fast: a polynomial from `lr` to `min_lr`, in the warm-up times a factor that grows linearly to 1.

    The defaults are mc-BEiT's for ViT-B on ADE20K.
    """

    steps: int | None = Field(160_000, ge=1)  # null: by epochs
    epochs: float = Field(127, gt=0)
    batch_size: int = Field(16, ge=1)  # images per step, over all workers
    warmup_steps: int = Field(1500, ge=0)
    warmup_epochs: float = Field(0, ge=0, le=0)  # in steps here
    warmup_ratio: float = Field(1e-6, ge=0, le=1)  # of the rate, at step 0
    power: float = Field(1.0, gt=0)
    lr: float = Field(8e-5, gt=0)
    min_lr: float = Field(0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    clip_grad: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _rises_before_it_ends(self) -> "PolynomialConfig":
        if self.steps is not None and self.warmup_steps >= self.steps > 1:
            raise ValueError(
                f"optim.warmup_steps={self.warmup_steps} must be less than optim.steps={self.steps}; set both"
            )
        return self

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, from 0."""
        left = 1 - step / self.total_steps(steps_per_epoch)
        lr = self.min_lr + (self.lr - self.min_lr) * left**self.power
        if step >= self.warmup_steps or self.steps == 1:
            return lr
        return lr * (1 - (1 - step / self.warmup_steps) * (1 - self.warmup_ratio))
