"""TRL's trainers: the mixin of `transformers`, which records the value of each sequence of a language model by
itself."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from trl.trainer.utils import RepeatSampler

from kcd_core.sequences import token_means

from .transformers import KCDTrainerMixin as PlainMixin

__all__ = ["KCDTrainerMixin"]


class KCDTrainerMixin(PlainMixin):
    """Trains on the condensed set of sequences: ``class Distil(KCDTrainerMixin, GKDTrainer): pass``, the mixin first.

    A sequence's value is the mean entropy of the student over the tokens that it is trained on: see
    `kcd_core.sequence_entropy`. It is recorded when ``compute_loss`` runs the student, from its logits or, if TRL
    makes none (``SFTTrainer``), from the entropies that it computes beside the loss. Under on-policy GKD the
    completions are the student's, and a sequence is its prompt. A ``compute_loss`` of your own that does not call the
    trainer's must call ``self.kcd_record(logits[:, :-1], targets=labels[:, 1:])``.

    Parameters
    ----------
    *args, **kwargs
        Those of the trainer and of `kcd_adapters.trainers.transformers.KCDTrainerMixin`, except ``kcd_value``,
        ``kcd_mixing`` and ``kcd_mixer``: sequences have one kind of value, and tokens can't be mixed.

    Raises
    ------
    TypeError
        If one of these three is given.
    ValueError
        With ``packing`` or ``padding_free``, whose rows are no samples (for packs, see
        `kcd_adapters.trainers.packing`); or if the trainer draws each prompt several times and shuffles what it
        generates, as ``DistillationTrainer`` does.
    RuntimeError
        In the first step, if the student was not run exactly once in ``compute_loss``, or gave neither logits nor entropies.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("kcd_value", "kcd_mixing", "kcd_mixer"):
            if kwargs.get(name) is not None:
                raise TypeError(
                    f"{name} is no setting for language models: sequences are valued by 'sequence_entropy', and tokens can't be "
                    "mixed. The mixin of kcd_adapters.trainers.transformers takes values of your own, kcd_record(values=...)"
                )
            kwargs.pop(name, None)
        super().__init__(*args, kcd_value="sequence_entropy", **kwargs)
        _check(self)

    def compute_loss(self, model: Any, inputs: Any, *others: Any, **settings: Any) -> Any:
        """The trainer's; in training, what the student said in it is recorded."""
        labels, outputs = inputs.get("labels"), []

        def keep(module: Any, given: Any, output: Any) -> None:
            if torch.is_grad_enabled():
                outputs.append(output)

        hook = model.register_forward_hook(keep) if model.training else None
        try:
            loss = super().compute_loss(model, inputs, *others, **settings)
        finally:
            if hook is not None:
                hook.remove()
        if hook is not None:
            self._kcd_record_output(outputs, labels)
            _warn_of_no_gradient(loss)
        return loss

    def _kcd_record_output(self, outputs: list[Any], labels: Any) -> None:
        output = outputs[0] if len(outputs) == 1 else None
        entropy, logits = getattr(output, "entropy", None), getattr(output, "logits", None)
        if entropy is not None:  # TRL's fused head; 0 for tokens that don't count
            self.kcd_record(values=token_means(entropy.detach(), output.label_mask))  # type: ignore[union-attr]
        elif logits is not None and labels is not None:
            self.kcd_record(logits[:, :-1], targets=labels[:, 1:])
        else:
            raise RuntimeError(
                f"compute_loss() ran the student {len(outputs)} times, and got "
                f"{', '.join(type(one).__name__ for one in outputs) or 'nothing'}, where one output with logits, or entropies, "
                "and labels are wanted: no value can be told. Override compute_loss, and call kcd_record() in it"
            )


def _warn_of_no_gradient(loss: Any) -> None:
    """Warn of logits that TRL made once more, beside a loss that needs none, for whoever asks for outputs."""
    logits = getattr(loss[1], "logits", None) if isinstance(loss, tuple) else None
    if logits is not None and torch.is_grad_enabled() and not logits.requires_grad:
        warnings.warn(
            "the logits that this trainer's compute_loss() returns have no gradient, so that a distillation loss on them teaches "
            "nothing: run the student yourself, logits = model(**inputs).logits, and call kcd_record(logits[:, :-1], "
            'targets=inputs["labels"][:, 1:])',
            UserWarning,
            stacklevel=3,
        )


def _check(trainer: Any) -> None:
    """ValueError if the rows that ``trainer`` trains on are no samples."""
    if getattr(trainer.args, "packing", False):
        raise ValueError(
            "packing=True: a pack of sequences is no sample, and packs must be made anew when the set changes. Use a loop "
            "of your own with kcd_adapters.trainers.packing, or packing=False"
        )
    if getattr(trainer.args, "padding_free", False):
        raise ValueError(
            "padding_free=True puts a batch's sequences into one row, and none is left for each sample: use padding_free=False"
        )
    # The Trainer has no public way to say what it draws by.
    if trainer.train_dataset is not None and isinstance(trainer._get_train_sampler(), RepeatSampler):
        raise ValueError(
            f"{type(trainer).__name__} draws each prompt several times, and shuffles the completions that it generates, so that "
            "no value could be told from another sequence's: use trl.experimental.gkd.GKDTrainer, whose lmbda=1.0 is "
            "on-policy, too"
        )
