"""What the page shows of one model: figures, sentences and numbers out of saved results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from mechdiff.report import by_class, findings, model_figures, numbers, pairs
from mechdiff.stats import Interval
from mechdiff.storage.run_log import progress
from mechdiff.study.examined_model import ExaminedModel


@dataclass(frozen=True)
class ModelView:
    """One model as the template shows it.

    Attributes:
      figures: of `model_figures.draw`.
      findings: a sentence each.
      ablation_pairs: agreement of every two ablations.
      by_class: None where the classes of images are not known.
      attention_tables: statistic -> means over images `[head, t]`; empty without heads.
      conditioned_on: in words; empty for an unconditional network.
      counted: numbers of images and people.
      intervals_over: what intervals are over.
      sample: `counted`, numbers of training seeds, and whether these are too few.
      memorization: distances to the training images, in words.
    """

    model: ExaminedModel
    figures: dict
    findings: list[Markup]
    ablation_pairs: list[numbers.Agreement]
    by_class: by_class.ByClass | None
    attention_tables: dict[str, Interval]
    conditioned_on: str
    counted: str
    intervals_over: str
    sample: str
    memorization: str


def views(models: Sequence[ExaminedModel], seeds: dict[str, int], figures: Path) -> list[ModelView]:
    """The views of `models`, on scales that they share.

    Args:
      seeds: data set -> number of training seeds, see `numbers.seeds`.
      figures: folder that figures are also written into.
    """
    limits = model_figures.limits(list(models))
    shown = []
    with progress(len(models), desc="drawing figures", unit="network") as bar:
        for model in models:
            shown.append(_view(model, limits, seeds, figures))
            bar.update()
    return shown


def _view(
    model: ExaminedModel, limits: model_figures.Limits, seeds: dict[str, int], figures: Path
) -> ModelView:
    has_heads = model.attention.sizes["head"]
    return ModelView(
        model,
        figures=model_figures.draw(model, limits, figures),
        findings=[*findings.about(model), pairs.about(model)],
        ablation_pairs=numbers.between_ablations(model),
        by_class=by_class.by_class(model),
        attention_tables=numbers.attention_intervals(model.attention) if has_heads else {},
        conditioned_on=by_class.conditioned_on(model),
        counted=findings.images(model),
        intervals_over=findings.intervals_over(model),
        sample=findings.sample(model, seeds),
        memorization=findings.memorization(model),
    )
