"""The plans of a campaign, for a model that configures itself: made once, by the first job that needs the model."""

import logging
from collections import Counter
from collections.abc import Callable

import models
from loop.errors import BadInput
from loop.rounds import Loop
from loop.workplace import Worker, Workplace, configuration, model_name
from models.plans import Plans
from trainers.nnunet_planner import Planned, make_plans

logger = logging.getLogger(__name__)


def plan_if_needed(worker: Worker) -> None:
    """Make the plans if the model follows from plans and there are none; what is there is never changed."""
    name = model_name(worker.config)
    if not models.is_planned(name) or worker.workplace.plans() is not None:
        return

    def report(fraction: float) -> None:
        # 1 would tell that the job, of which this is the beginning, is over.
        worker.report(fraction=min(fraction, 0.99), planning=name)

    plans = plan(worker.workplace, worker.loop, report=report, warn=worker.warn)
    logger.info("Planned %s: %s", name, plans.summary())


def plan(
    workplace: Workplace,
    loop: Loop,
    *,
    again: bool = False,
    report: Callable[[float], None] = lambda fraction: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Plans:
    """Plan on all images of the campaign, and keep the plans in the model's folder.

    Args:
        again: plans that are there are replaced; without it they stay, and are what is returned.
        report: told the share of the images that have been read.
        warn: told of an image that is left out.

    Raises:
        BadInput: the configured model does not follow from plans, or there are no images to plan on.
    """
    config = workplace.open_config()
    if not models.is_planned(model_name(config)):
        raise BadInput(f"The model {model_name(config)!r} follows from no plans: set --conf model nnunet.")
    made = make_plans(
        _cases(workplace, loop),
        config.labels,
        configuration=configuration(config),
        modality=config.modality,
        folder=workplace.model_folder,
        report=report,
        warn=warn,
    )
    return made.keep(workplace.plans_file, replace=again)


def _cases(workplace: Workplace, loop: Loop) -> list[Planned]:
    """All images, each with its own slice axis first, or for volumes with the axis first that most have."""
    located = loop.catalogue.located()
    annotated = {row["id"] for row in loop.submitted.labeled_images()}
    axes = Counter(row["axis"] for row in located.values())
    fetching = workplace.fetching(loop)
    volumes = configuration(workplace.open_config()) != "2d"
    return [
        Planned(
            workplace.root / row["path"],
            axes.most_common(1)[0][0] if volumes else row["axis"],
            workplace.labels / "final" / f"{image_id}.nii.gz" if image_id in annotated else None,
            fetching(image_id),
        )
        for image_id, row in located.items()
    ]
