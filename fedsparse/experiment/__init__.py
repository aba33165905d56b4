"""Configurations, runs and their folders, comparisons: the layer that serves people and scripts."""

from fedsparse.experiment.compare import Row, compare
from fedsparse.experiment.config import Config, load_config
from fedsparse.experiment.run import resume, resume_variants, run, run_variants
from fedsparse.experiment.session import Result

__all__ = [
    "Config",
    "Result",
    "Row",
    "compare",
    "load_config",
    "resume",
    "resume_variants",
    "run",
    "run_variants",
]
