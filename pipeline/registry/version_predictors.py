"""Load the predictors of registered versions."""

from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import same_task
from pipeline.inference.predictor import Judge, load_judge
from pipeline.registry.promotion_log import read_promotions
from pipeline.registry.version_files import fetch_version


def champion_version(config: RunConfig) -> str:
    """The champion by the log. ConfigError: nothing was promoted yet."""
    log = read_promotions(config)
    if not log:
        raise ConfigError(
            f"model {config.registry.model} has no champion to compare with; `relevance promote` makes "
            "the first one"
        )
    return str(log[-1]["version"])


def judge_of(config: RunConfig, version: str) -> Judge:
    """A registered version, ready to judge the config's test rows. ConfigError: it was trained on some of
    them, or on other labels.
    """
    fetched = fetch_version(config, version)
    judge, bundle = load_judge(fetched.bundle_dir, fetched.bundle_sha256)
    share = bundle.description["split"]["test_share"]
    if share < config.split.test_share:
        raise ConfigError(
            f"version {version} was trained with split.test_share {share}, the config has "
            f"{config.split.test_share}: some test rows of now are not"
            " test rows of then; lower split.test_share"
        )
    for task in judge.tasks:
        same_task(task, config.tasks, f"version {version} and in the config")
    return judge
